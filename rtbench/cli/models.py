"""evaluate, export, data."""

from __future__ import annotations

import json

import click

from rtbench.cli import options
from rtbench.errors import UserError


@click.command()
@click.argument("checkpoint")
@click.option("--arch", required=True, metavar="A", help="The architecture, as in `rtbench parts architecture`.")
@click.option("--knob", "knobs", multiple=True, metavar="K=V", help="A knob of the architecture; may be repeated.")
@click.option("--dataset", required=True, metavar="D", help="The dataset, as in `rtbench parts dataset`.")
@click.option("--data-knob", "data_knobs", multiple=True, metavar="K=V", help="A knob of the dataset.")
@click.option("--attack", required=True, metavar="X", help="The attack, as in `rtbench parts attack`.")
@click.option("--attack-knob", "attack_knobs", multiple=True, metavar="K=V", help="A knob of the attack.")
@click.option("--norm", help="linf, l2 or l1.")
@click.option("--eps", help='Radius in input units, exact: "8/255", 0.3.')
@click.option("--samples", type=int, metavar="N", help="How many samples; all if not given.")
@click.option("--rule", default="first", show_default=True, help="Which samples: first, random or stratified.")
@click.option("--split", default="test", show_default=True, help="test, valid or train.")
@click.option("--batch", default=512, show_default=True, help="Samples attacked at a time.")
@click.option("--seed", default=0, show_default=True, help="Seed of the attack's randomness.")
@click.option("--rename", multiple=True, metavar="PATTERN=NEW", help="Rename tensors of the checkpoint by regular expression.")
@click.option("--lenient", is_flag=True, help="Allow missing and surplus tensors.")
@options.plugins
@options.device
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Processes that a native attack runs in on a CPU, of one thread each.  [default: one per core; 1 with --threads]",
)
@click.option("--threads", type=click.IntRange(1), help="Run in this process, with so many threads.  [default: all cores]")
@options.data
@click.option("--witness", metavar="FILE", help="Keep adversarial examples in this safetensors file, as evidence.")
@click.option("--output", metavar="FILE", help="Write the result as JSON, for `rtbench verify FILE`.")
@options.formats("terminal", "json")
def evaluate(
    checkpoint: str, arch: str, dataset: str, attack: str, format_: str, lenient: bool, threads: int | None, workers: int | None,
    output: str | None, **given: object,
) -> None:  # fmt: skip
    """Attack the model in CHECKPOINT, a safetensors file or a torch file that holds only tensors."""
    from pathlib import Path

    from rtbench.engine.memory import reuse_freed
    from rtbench.engine.processes import cores, start_server
    from rtbench.evaluation.outcome import AttackFailure
    from rtbench.storage.disk import explained, writable, write_aside

    if threads is not None and workers is not None and workers > 1:
        raise UserError("--threads and --workers: give one of them; each worker has one thread")
    for option, file in (("--output", output), ("--witness", given["witness"])):
        if file is not None:
            writable(Path(str(file)), option)
    processes = workers or (1 if threads is not None else cores())
    if processes > 1:
        start_server()
    from rtbench.live.checkpoint import evaluate_checkpoint
    from rtbench.running.workers import set_threads

    reuse_freed()
    set_threads(threads)
    try:
        result = evaluate_checkpoint(checkpoint, arch, dataset, attack, strict=not lenient, workers=processes, **given)  # type: ignore[arg-type]
    except AttackFailure as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, UserError):
            raise  # what an attack raised keeps its traceback
        raise UserError(str(error)) from error
    if output is not None:
        from rtbench.storage.results import sign

        with explained(Path(output), "--output"):
            write_aside(Path(output), json.dumps(sign(result)).encode())
    if format_ == "json":
        click.echo(json.dumps(result))
        return
    low, high = result["interval"]
    threat = f" {result['norm']} eps {result['eps']}" if result["norm"] else ""
    click.echo(f"clean    {result['clean']:7.2%}  ({result['samples']} {result['split']} samples)")
    click.echo(f"robust   {result['robust']:7.2%}  [{low:.2%}, {high:.2%}] under {result['attack']}{threat}")
    for name, value in result["parts"].items():
        if name != "missed":
            click.echo(f"  after {name}: {value:.2%}")
    if result["recheck"] is not None:
        click.echo(f"bf16     {result['recheck']}")
    click.echo(f"non-zero {result['nonzero']:7.2%} of all parameters; {result['seconds']} s; sha256 {result['sha256']}")
    if result["flags"]:
        click.echo(f"flags    {', '.join(result['flags'])}")


@click.command()
@click.argument("key")
@click.option("--output", required=True, metavar="FILE", help="The safetensors file to write.")
@click.option("--with-masks", is_flag=True, help='Add the masks, as "mask:NAME"; else only the weights, zeros in place.')
@options.store
def export(key: str, output: str, with_masks: bool, store: str) -> None:
    """Write the weights of stage KEY (or KEY/SNAPSHOT) to a safetensors file."""
    from pathlib import Path

    from rtbench.commands.upkeep import exported
    from rtbench.storage.store import Store, explained, write_aside

    content = exported(Store(store, create=False), key, with_masks)
    with explained(Path(output), "--output"):
        write_aside(Path(output), content)
    click.echo(f"{output}: {len(content)} bytes")


@click.command()
@click.argument("dataset")
@click.option("--download", is_flag=True, help="Fetch it into the data folder, checksums verified.")
@click.option("--data", "folder", metavar="DIR", help="The data folder; RTBENCH_DATA, or ./data.")
@options.plugins
def data(dataset: str, download: bool, folder: str | None, plugins: tuple[str, ...]) -> None:
    """Describe DATASET as found in the data folder, or download it there first."""
    from pathlib import Path

    from rtbench.commands.study import data_root
    from rtbench.data.splits import data_digest
    from rtbench.engine.run import Options, load_data
    from rtbench.planning.resolve import Resolver
    from rtbench.plugins import catalogue

    found, root = catalogue(plugins), data_root(folder)
    if download:
        from rtbench.builtin.datasets.download import download as fetch

        fetch(dataset, Path(root))
        if dataset not in found.names("dataset"):  # a supplement such as svhn-extra
            return
    part = Resolver({}, found)("dataset", dataset, dataset)
    loaded = load_data(part, found, Options(root=root))
    sizes = ", ".join(f"{len(split)} {name}" for name in ("train", "valid", "test") if (split := getattr(loaded, name)) is not None)
    click.echo(f"{dataset}: {sizes}; images {loaded.shape}, {loaded.classes} classes; digest {data_digest(loaded)}")
