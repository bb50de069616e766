"""Generates parts of the site: the networks, figures, records, and the walkthrough as it was last run.

Everything is written to docs/made, which git ignores, before Sphinx reads the pages.
"""

import json
import pathlib
import re
import shutil

import walkthrough

from keras_resnet.experiments import EXPERIMENTS, claims, figures, load, report
from keras_resnet.runs import Run
from keras_resnet.serving import web
from keras_resnet.training.options import flags
from keras_resnet.training.settings import network_name

DOCS = pathlib.Path(__file__).parents[1]
NETWORKS = ("cifar10-resnet-20", "cifar10-plain-20", "cifar10-resnet-56", "cifar10-plain-56")
NOT_RUN = "Not run yet:"


def write(folder: pathlib.Path) -> None:
    records = load(DOCS / "results")
    files = {**networks(), **results(records), **lesson(records), "walkthrough.md": walkthrough.page(folder)}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != content:  # Sphinx rebuilds changed files
            path.write_bytes(content)
    for name in ("network.js", "picture.js", "drawings.js", "page.js", "demo.css"):
        shutil.copy(web.FOLDER / name, folder / "static")


def networks():
    """Each network as a script, which a page opened from a folder may load, and the page that loads them."""
    files, choices = {}, []
    for name in NETWORKS:
        run = Run(name)
        model = run.load_model()
        described, _ = web.describe(model, run.classes, model.input_shape[1], run.result)
        script = f"LOADED[{json.dumps(name)}] = {json.dumps(described, separators=(',', ':'))};\n"
        files[f"static/networks/{name}.js"] = script
    for residual, plain in zip(NETWORKS[::2], NETWORKS[1::2], strict=True):
        pair = [{"name": name, "address": f"_static/networks/{name}.js"} for name in (residual, plain)]
        size = sum(len(files[f"static/networks/{name}.js"]) for name in (residual, plain)) / 1e6
        choices.append({"label": f"{residual.rpartition('-')[2]} layers ({size:.1f} MB)", "networks": pair})
    scripts = "".join(f'<script src="_static/{name}.js"></script>\n' for name in ("network", "picture", "drawings"))
    files["demo.html"] = (
        f"{(web.FOLDER / 'demo.html').read_text('utf-8')}{scripts}"
        f'<script>const CHOICES = {json.dumps(choices)};</script>\n<script src="_static/page.js"></script>\n'
    )
    return files


# ---- The results ----


def results(records):
    files, texts, above = {}, [], set()
    sections, missing = report.sections(records)
    for name, experiment, entries, drawn in sections:
        lines = [f"## {experiment.title} ({experiment.source})"]
        for number, figure in enumerate(drawn, 1):
            file = f"figures/{name}-{number}.svg"
            files[file] = figures.svg(figure)
            lines.append(f"![{experiment.title}; the table has the numbers]({file})")
        lines += [*table(entries, above), *not_run(name, entries)]
        texts.append("\n\n".join(lines))
    rest = "\n".join(f"- {title}: `{command}`" for title, command in missing)
    files["runs.md"] = "\n\n".join([INTRODUCTION, *texts, "## Experiments that were not run", rest])
    files["runs.md"] += "\n\n" + every_run(records)
    files["depth.md"] = depth(records)
    files |= seeds(records)
    return files


INTRODUCTION = f"""# Every run

P1 is [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), P2
[Identity Mappings in Deep Residual Networks](https://arxiv.org/abs/1603.05027). Errors are in %, on the 10,000 test
images of CIFAR-10; ± is the standard deviation over seeds.
{report.COMPARABLE}"""


def table(entries, above):
    """The rows of an experiment; rows that are in a table `above` are not repeated."""
    rows = ["| network | the paper | here | runs | trained on | steps | other conditions |"]
    rows.append("|---|--:|--:|--:|---|--:|---|")
    repeated = []
    for entry in entries:
        row, conditions, records = entry
        files = tuple(record["command"] for record in records)
        if not records:
            continue
        if files in above:
            repeated.append(row.name)
            continue
        above.add(files)
        others = {name: value for name, value in conditions.items() if name != "steps"}
        where = "; ".join(dict.fromkeys(map(report.trained_on, records)))
        cells = (
            row.name,
            row.paper or "",
            f"**{report.ours(entry.errors)}**",
            len(records),
            where,
            f"{entry.steps:,}",
            f"`{flags(others)}`",
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    again = f"In a table above: {', '.join(dict.fromkeys(repeated))}." if repeated else ""
    return (["\n".join(rows)] if len(rows) > 2 else []) + ([again] if again else [])


def seeds(records):
    """The tables of what several seeds say, each with its figure if it has one."""
    files, sections = {}, []
    for table in claims.tables(records):
        lines = [f"## {table.title}", table.caption]
        if table.draw:
            files["figures/seeds.svg"] = figures.svg(table.draw())
            lines.insert(1, f"![{table.title}, the table has the numbers](figures/seeds.svg)")
        rows = [[re.sub("--.*", r"`\g<0>`", cell) for cell in row] for row in table.rows]
        rows = [table.head, ["---"] * len(table.head), *rows]
        lines.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        sections.append("\n\n".join(lines))
    files["seeds.md"] = "\n\n".join(sections) + "\n"
    return files


def not_run(name, entries):
    rows = [entry.row.name for entry in entries if not entry.records]
    return [f"{NOT_RUN} `python train/reproduce.py {name} --only {' '.join(rows)}`"] if rows else []


def every_run(records):
    """The commands, each with a copy button, sorted by network; the longest schedule first."""
    lines = [
        "## The commands",
        "Each command trains the run of its caption; add `--data-dir` for data in another folder.",
    ]
    for record in sorted(records, key=lambda record: (_name(record), -record["history"]["step"][-1])):
        (made,) = record["segments"][-1:]
        versions = ", ".join(f"{name} {made[name]}" for name in (made["backend"], "keras", "commit"))
        machine = f"{report.trained_on(record)}: {versions}"
        minutes = f"{record['result']['seconds'] / 60:,.0f} minutes"
        caption = f"{_name(record)}: {100 * record['error']:.2f} %, {minutes} on {machine}"
        lines.append(f"```{{code-block}} sh\n:caption: {caption}\n\n{record['command']}\n```")
    return "\n\n".join(lines) + "\n"


def _name(record):
    settings = record["settings"]
    shortcut = "" if settings["plain"] or settings["shortcut"] == "A" else f"-{settings['shortcut']}"
    return network_name(settings) + shortcut


def depth(records):
    """The first page's table: test errors by depth, without and with shortcuts, with the whole schedule."""
    entries = claims.whole(records)
    of = lambda name: [entry for entry in entries if entry.row.name == name]  # one for each backend
    rows = ["| layers | plain, here | residual, here | residual, the paper |", "|--:|--:|--:|--:|"]
    for layers in sorted({entry.row.network["depth"] for entry in entries}):
        plain, residual = of(f"plain-{layers}"), of(f"ResNet-{layers}")
        ours = [", ".join(report.ours(entry.errors) for entry in found) for found in (plain, residual)]
        rows.append(f"| {layers} | {ours[0]} | **{ours[1]}** | {residual[0].row.paper if residual else ''} |")
    return "\n".join(rows) + "\n"


# ---- The lesson ----


def lesson(records):
    """The records as a script; curves in %, with four digits."""
    papers = {row.name: row.paper for row in EXPERIMENTS["table6"].rows}
    short = lambda values: [float(f"{100 * value:.4g}") for value in values]
    found = []
    for record in records:
        history, name = record["history"], _name(record)
        found.append(
            {
                "name": name,
                "depth": record["settings"]["depth"],
                "plain": record["settings"]["plain"],
                "steps": int(history["step"][-1]),
                "seed": record["settings"]["seed"],
                "error": round(100 * record["error"], 2),
                "paper": papers.get(name),
                "at": [int(step) for step in history["step"]],
                "training": short(history["error"]),
                "responses": list(record["response_std"].values()),
            }
        )
    return {"static/records.js": f'"use strict";\nconst RECORDS = {json.dumps(found, separators=(",", ":"))};\n'}
