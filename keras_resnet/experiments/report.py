"""The report of the experiments' results: tables with the papers' numbers, and the papers' figures."""

import base64
import html
import json
import os
import re
import statistics
import typing
from collections.abc import Sequence

import numpy as np

from keras_resnet.experiments import experiments, tables
from keras_resnet.experiments.tables import Experiment
from keras_resnet.files import Path, RunError, write_whole
from keras_resnet.training import recipes
from keras_resnet.training.options import command as command_of
from keras_resnet.training.options import flags

if typing.TYPE_CHECKING:
    from keras_resnet.experiments import figures

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX"}

# Of every page of results, in Markdown.
COMPARABLE = """
Networks are comparable if their conditions are the same. A shortened schedule divides the learning rate by 10 at the
same fractions of its length (on ImageNet: when the validation error plateaus, if it does), and its errors are not
comparable with the paper's. On CIFAR-10 the paper's networks are trained on all 50,000 images, as are runs with
`--train-on-all`; the others are trained on 45,000, and their curves show the error on the other 5,000. The paper's
curves show the test error. Here the test images are used once, at the end.
"""


def made_with(record: dict) -> str:
    """The backend of a run and the images it normalised together, as text: "JAX, 64"."""
    found = [f"{_backend(one)}, {one['normalized_together']}" for one in record["segments"]]
    return "; then ".join(dict.fromkeys(found))


def trained_on(record: dict) -> str:
    """Backend and devices of a run: "JAX on NVIDIA H200", or "TensorFlow on 1 CPU core; then TensorFlow on ..."."""
    found = []
    for one in record["segments"]:
        count = f"{len(one['devices'])} x " * (len(one["devices"]) > 1)
        found.append(f"{_backend(one)} on {count}{one['devices'][0]}")
    return "; then ".join(dict.fromkeys(found))


def _backend(segment):
    return BACKENDS.get(segment["backend"], segment["backend"])


class Entry(typing.NamedTuple):
    """A row of an experiment and its runs that can be averaged, sorted by seed; the list may be empty.

    The runs have the same conditions and the same `made_with`.
    """

    row: tables.Row
    conditions: dict
    records: list[dict]

    @property
    def errors(self) -> list[float]:
        """In %."""
        return [100 * record["error"] for record in self.records]

    @property
    def steps(self) -> int:
        """The length of the schedule. IndexError without runs."""
        return _steps(self.records[0])


def entries(experiment: Experiment, records: Sequence[dict]) -> list[Entry]:
    """The entries of an experiment; those of a row are sorted by their number of steps, the longest first."""
    found = []
    for row in experiment.rows:
        groups: dict[str, tuple[dict, list[dict]]] = {}
        for record in records:
            if experiments.matches(experiment, row, record):
                conditions = dict(record["conditions"])
                if experiment.dataset is None:
                    conditions["data"] = record["settings"]["dataset"]
                key = json.dumps([conditions, made_with(record)], sort_keys=True)
                groups.setdefault(key, (conditions, []))[1].append(record)
        by_steps = sorted(groups.values(), key=lambda group: -_steps(group[1][0]))
        by_seed = lambda record: record["settings"]["seed"]
        found += [Entry(row, conditions, sorted(runs, key=by_seed)) for conditions, runs in by_steps]
        if not groups:
            found.append(Entry(row, {}, []))
    return found


def groups(found: Sequence[Entry]) -> list[list[Entry]]:
    """Lists of entries that have runs under the same conditions; the most common conditions first.

    Among equally common conditions the longest schedule comes first. A row is in a list once: with the backend that has
    most runs of it, and with another one in another list, unless it would be alone there.
    """
    by_conditions: dict[tuple[str, int], list[Entry]] = {}
    for entry in sorted(found, key=lambda entry: -len(entry.records)):
        conditions, turn = json.dumps(entry.conditions, sort_keys=True), 0
        while any(entry.row == other.row for other in by_conditions.get((conditions, turn), ())):
            turn += 1
        if entry.records:
            by_conditions.setdefault((conditions, turn), []).append(entry)
    order = [entry.row for entry in found]
    compared = [group for (_, turn), group in by_conditions.items() if turn == 0 or len(group) > 1]
    for group in compared:
        group.sort(key=lambda entry: order.index(entry.row))
    return sorted(compared, key=lambda group: (-len(group), -group[0].steps))


def _steps(record):
    return int(record["history"]["step"][-1])


def ours(errors: Sequence[float]) -> str:
    """Errors in % as text: a single one, or the mean and the standard deviation of several."""
    if not errors:
        return "–"
    if len(errors) == 1:
        return f"{errors[0]:.2f}"
    return f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}"


def command(name: str, entry: Entry, conditions: dict) -> str:
    """The command that trains an entry; for an entry without runs, under the conditions of the others."""
    options = {"only": entry.row.name, **(entry.conditions if entry.records else conditions)}
    if tables.EXPERIMENTS[name].dataset is None:
        options.setdefault("data", "IMAGENET")
    seeds = max((record["settings"]["seed"] for record in entry.records), default=0) + 1
    if seeds > 1:
        options["seeds"] = seeds
    backend = entry.records[0]["segments"][0]["backend"] if entry.records else None
    return command_of(options, backend, f"reproduce.py {name}")


class Section(typing.NamedTuple):
    """The entries of an experiment that has runs, and its figures, one for each of `groups` that has one."""

    name: str
    experiment: Experiment
    entries: list[Entry]
    figures: "list[figures.Figure]"


def sections(records: Sequence[dict]) -> tuple[list[Section], list[tuple[str, str]]]:
    """The sections of a report, and what was not run: the titles of the other experiments, and their commands."""
    found, missing = [], []
    for name, experiment in tables.EXPERIMENTS.items():
        rows = entries(experiment, records)
        if any(entry.records for entry in rows):
            drawn = [figure for group in groups(rows) if (figure := draw(experiment, group))]
            found.append(Section(name, experiment, rows, drawn))
        else:
            data = "" if experiment.dataset else " --data IMAGENET"
            missing.append((f"{experiment.title}, {experiment.source}", f"python train/reproduce.py {name}{data}"))
    return found, missing


def draw(experiment: Experiment, group: Sequence[Entry]) -> "figures.Figure | None":
    """The experiment's figure of one of `groups`; None if there is none, or it shows none of these networks."""
    from keras_resnet.experiments import figures  # here, because only figures need matplotlib

    shared = {entry.row.name: entry for entry in group}
    conditions = schedule(experiment, next(iter(shared.values())))
    most = max(len(entry.records) for entry in shared.values())
    if most > 1:
        conditions += f", mean of up to {most} runs"
    depths = sorted({row.network["depth"] for row in experiment.rows})
    if experiment.responses:
        networks = [
            figures.Responses(
                name,
                depths.index(entry.row.network["depth"]),
                entry.row.network.get("plain", False),
                _mean(entry, lambda record: list(record["response_std"].values())),
            )
            for name, entry in shared.items()
        ]
        return figures.draw_responses(networks, f"{experiment.title}; dashed: plain\n{conditions}")
    panels = []
    for title, names in experiment.panels:
        by_depth = len({experiment.row(name).network["depth"] for name in names}) == len(names)
        curves = [
            figures.Curve(
                name.removeprefix(f"{title}-"),
                depths.index(shared[name].row.network["depth"]) if by_depth else position,
                _mean(shared[name], lambda record: record["history"]["step"]),
                _mean(shared[name], lambda record: record["history"]["error"]),
                None
                if "train_on_all" in shared[name].conditions
                else _mean(shared[name], lambda record: record["history"]["val_error"]),
                _mean(shared[name], lambda record: record["error"]),
            )
            for position, name in enumerate(names)
            if name in shared
        ]
        if curves:
            panels.append((title, curves))
    every = [curve for _, curves in panels for curve in curves]
    drawn = ["dashed: training"]
    drawn += ["bold: validation"] * any(curve.validation is not None for curve in every)
    drawn += ["point: test, at the end"] * any(curve.validation is None for curve in every)
    note = f"{experiment.title}; {', '.join(drawn)}\n{conditions}"
    return figures.draw_curves(panels, note) if panels else None


def _mean(entry, values):
    found = [values(record) for record in entry.records]
    if len({np.shape(curve) for curve in found}) > 1:
        commands = "\n  ".join(record["command"] for record in entry.records)
        raise RunError(f"these runs have curves of different lengths, so their data differ:\n  {commands}")
    return np.mean(found, axis=0)


def schedule(experiment: Experiment, entry: Entry) -> str:
    """The conditions of an entry as text, the length of the schedule first."""
    whole = (recipes.CIFAR if experiment.dataset else recipes.IMAGENET)["steps"]
    steps = entry.steps
    found = [f"{steps:,} steps" if steps == whole else f"{steps:,} of {whole:,} steps"]
    others = {name: value for name, value in entry.conditions.items() if name not in ("steps", "data")}
    if "data" in entry.conditions:
        found.append(entry.conditions["data"])
    together = {one["normalized_together"] for record in entry.records for one in record["segments"]}
    if together != {entry.records[0]["settings"]["bn_batch_size"]}:
        found.append(f"{' and '.join(map(str, sorted(together)))} images normalised together")
    return ", ".join([*found, *([flags(others)] if others else [])])


def write(records: Sequence[dict], folder: Path) -> list[str]:
    """Writes report.html and, as PNG, the figures that have results, one for each schedule.

    Args:
        records: those of `experiments.load`.
        folder: an existing folder.

    Returns:
        The paths of the files.

    Raises:
        RunError: a file cannot be written, or runs that differ only in the seed have curves of different lengths.
    """
    from keras_resnet.experiments import claims, figures  # here, because tables do without scipy and matplotlib

    written, texts = [], []
    found, missing = sections(records)
    for section in found:
        for number, figure in enumerate(section.figures, 1):
            path = os.path.join(folder, f"{section.name}{f'-{number}' * (number > 1)}.png")
            figures.write_png(figure, path)
            written.append(path)
        texts.append(_section(section))
    for table in claims.tables(records):
        picture = ""
        if table.draw:
            figure = table.draw()
            path = os.path.join(folder, "seeds.png")
            figures.write_png(figure, path)
            written.append(path)
            picture = _picture(table.title, figure)
        texts.append(_statistics(table, picture))
    path = os.path.join(folder, "report.html")
    write_whole(path, lambda file: file.write(_page(records, texts, missing).encode(errors="backslashreplace")))
    return [path, *written]


def _picture(title, figure):
    from keras_resnet.experiments import figures  # here, because only figures need matplotlib

    source = f"data:image/svg+xml;base64,{base64.b64encode(figures.svg(figure)).decode()}"
    return f'<img src="{source}" alt="{html.escape(title)}: figure; the table has its numbers">'


COLUMNS = ("network", "parameters", "the paper", "here", "validation", "runs", "trained on", "conditions", "command")


def _section(section):
    name, experiment, found, drawn = section
    pictures = "\n".join(_picture(experiment.title, figure) for figure in drawn)
    most_shared = groups(found)[0][0].conditions
    rows = []
    for entry in found:
        results = [record["result"] for record in entry.records]
        validation = [100 * result["val_error"] for result in results if result["val_error"] is not None]
        cells = [
            entry.row.name,
            f"{results[0]['parameters']:,}" if results else "–",
            entry.row.paper or "–",
            ours(entry.errors),
            ours(validation),
            str(len(results)) if results else "–",
            "; ".join(dict.fromkeys(map(trained_on, entry.records))) or "–",
            schedule(experiment, entry) if results else "–",
        ]
        code = _code(command(name, entry, most_shared))
        data = [f'<td class="{"" if i in (0, 6, 7) else "number"}">{html.escape(c)}</td>' for i, c in enumerate(cells)]
        rows.append(f"<tr{'' if results else ' class=missing'}>{''.join(data)}<td>{code}</td></tr>")
    measured = next(entry.records[0]["measured_on"] for entry in found if entry.records)
    heads = "".join(f"<th>{column}</th>" for column in COLUMNS)
    return f"""<section id="{name}">
<h2>{html.escape(experiment.title)} <small>{html.escape(experiment.source)}</small></h2>
{pictures}
<div class="wide"><table><caption>Error in %, on {html.escape(measured)}; ± is the standard deviation over runs with
different seeds. Runs on TensorFlow and JAX, whose random numbers differ, are not averaged together.
</caption><thead><tr>{heads}</tr></thead><tbody>
{os.linesep.join(rows)}
</tbody></table></div></section>"""


def _statistics(table, picture):
    line = lambda cells, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    rows = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in table.rows)
    return f"""<section>
<h2>{table.title}</h2>
{picture}
<p>{table.caption}</p>
<div class="wide"><table class="statistics"><thead><tr>{line(table.head, "th")}</tr></thead><tbody>
{rows}
</tbody></table></div></section>"""


def _code(text):
    """A command with line breaks only before its flags."""
    return f"<code>{' '.join(f'<span>{html.escape(part)}</span>' for part in re.split(' (?=--)', text))}</code>"


def _page(records, texts, missing):
    todo = "".join(f"<li>{html.escape(title)}: {_code(command)}</li>" for title, command in missing)
    comparable = re.sub("`(.*?)`", r"<code>\1</code>", COMPARABLE.strip())
    todo = f"<section><h2>Not run yet</h2><ul>{todo}</ul></section>" if todo else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Deep residual learning: the papers' experiments</title>
<style>{STYLE}</style></head><body><main>
<h1>The papers' experiments</h1>
<p>P1 is <a href="https://arxiv.org/abs/1512.03385">Deep Residual Learning for Image Recognition</a>, P2
<a href="https://arxiv.org/abs/1603.05027">Identity Mappings in Deep Residual Networks</a>. {len(records)} runs of
<code>train/reproduce.py</code> are shown; <code>train/report.py</code> made this page.</p>
<p>{comparable}</p>
{os.linesep.join(texts)}
{todo}
</main></body></html>
"""


STYLE = """
:root { --text: #1f2328; --muted: #59636e; --line: #d8dce1; --back: #ffffff; --code: #f3f4f6; --link: #0060a0; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1340px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
main > p { max-width: 46rem; }
a { color: var(--link); }
h1 { font-size: 1.9rem; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; }
h2 small { color: var(--muted); font-weight: normal; font-size: 1rem; margin-left: .5rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .5rem; }
th { text-align: left; color: var(--muted); font-weight: 600; }
th, td { padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line); }
th, td { vertical-align: top; white-space: nowrap; }
.number, th:nth-child(n+2):nth-child(-n+6) { text-align: right; }
td:first-child, td:nth-child(4) { font-weight: 600; }
.statistics td { text-align: left; font-weight: normal; }
.statistics th:nth-child(n) { text-align: left; }
section > p { max-width: 46rem; color: var(--muted); }
.missing td { color: var(--muted); font-weight: normal; }
code { background: var(--code); padding: .1rem .35rem; border-radius: 4px; font: .85em ui-monospace, monospace; }
td code { display: inline-block; white-space: normal; min-width: 16rem; }
td code span { white-space: nowrap; }
"""
