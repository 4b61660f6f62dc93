"""`mlm-export info` and `mlm-export verify`, which need none of the packages that exporting needs."""

import json
from pathlib import Path

import click

from mlm_infer.shared.command import command_errors

__all__ = ["info", "verify"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@command_errors
def info(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE contains, according to its manifest."""
    from mlm_infer.inspection import describe_bundle

    description = describe_bundle(bundle)
    click.echo(json.dumps(description.to_dict()) if as_json else description.text())


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--torchscript", is_flag=True, help="Also open the TorchScript model, which runs the code in it.")
@command_errors
def verify(bundle: Path, torchscript: bool) -> None:
    """Check every file of BUNDLE: hashes, graphs, tokenizer, known answers."""
    from mlm_infer.inspection import verify_bundle

    for line in verify_bundle(bundle, torchscript=torchscript):
        click.echo(line)
