"""Variants measured in turn, each in processes of its own, because threads and devices are chosen per process."""

import contextlib
import multiprocessing
import time

import keras

ENDLESS = 10**9  # steps of a `fit` that its process ends


class Turn(keras.callbacks.Callback):
    """Called after each step; after `steps` steps sends the time that they took and waits for the next turn."""

    def __init__(self, pipe, steps):
        super().__init__()
        self.pipe, self.steps, self.left, self.began = pipe, steps, 1, time.perf_counter()

    def __call__(self):
        self.left -= 1
        if not self.left:
            self.pipe.send(time.perf_counter() - self.began)
            self.pipe.recv()
            self.left, self.began = self.steps, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self()


def _play(pipe, steps, work, *arguments):
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        work(Turn(pipe, steps), *arguments)


def take_turns(rivals, steps, rounds):
    """Lets rivals train in turn.

    Args:
        rivals: by name, the processes that run at the same time, each a tuple of a function and its arguments. The
            function gets a `Turn` as its first argument, trains without end and calls the `Turn` after each step.
        steps: steps in a turn.
        rounds: turns of each rival that are counted.

    Returns:
        By name, the seconds of each turn, and the seconds until the first step was done.
    """
    context, pipes, first = multiprocessing.get_context("spawn"), {}, {}
    for name, processes in rivals.items():
        pipes[name] = []
        for work, *arguments in processes:
            here, there = context.Pipe()
            context.Process(target=_play, args=(there, steps, work, *arguments), daemon=True).start()
            there.close()
            pipes[name].append(here)
        first[name] = max(pipe.recv() for pipe in pipes[name])
    seconds = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, ends in pipes.items():
            for pipe in ends:
                pipe.send("go")
            took = max([pipe.recv() for pipe in ends])
            if turn:  # the first is to warm up
                seconds[name].append(took)
    return seconds, first
