"""Alternating measurements of variants, in one or more processes each: threads and devices are set per process."""

import contextlib
import multiprocessing
import signal
import time

ENDLESS = 10**9  # steps of a run that ends with its process


class Turn:
    """Called after each step, or after several; after `steps` steps it sends their time and waits for its next turn."""

    def __init__(self, pipe, steps):
        self.pipe, self.steps, self.goal, self.done, self.began = pipe, steps, 1, 0, time.perf_counter()

    def __call__(self, steps=1):
        self.done += steps
        if self.done >= self.goal:
            self.pipe.send((time.perf_counter() - self.began) * self.goal / self.done)
            self.pipe.recv()
            self.goal, self.done, self.began = self.steps, 0, time.perf_counter()


def _play(pipe, steps, work, *arguments):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # its parent sends it at the end; no message
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        work(Turn(pipe, steps), *arguments)


def take_turns(rivals, steps, rounds):
    """Alternates between rivals: each trains while the others wait.

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
            if turn:  # the first is a warm-up
                seconds[name].append(took)
    return seconds, first
