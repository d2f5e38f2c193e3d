"""``sanrobust info``: what this installation is and can use."""

from __future__ import annotations

import click

from sanrobust.cli.group import Command


@click.command(cls=Command)
@click.option("--operators", is_flag=True, help="Print instead which kernels compute each operator "
              "of the design space here, by what its network calls; takes some seconds.")
def info(operators: bool) -> None:
    """Print versions, devices, kernel backends and where files are kept."""
    import torch

    if operators:
        from sanrobust import support
        devices = [torch.device("cpu")]
        devices += [torch.device("cuda")] if torch.cuda.is_available() else []
        click.echo("\n".join(support.shown([*support.supported(support.networks(), devices)])))
        return

    from sanrobust import allocator, device
    from sanrobust.kernels.backends import explain
    from sanrobust.zoo import store
    for name, version in device.versions().items():
        click.echo(f"{name:<14}{version}")
    cpu = torch.device("cpu")
    click.echo(f"\n{'cpu':<14}{torch.get_num_threads()} threads, "
               f"{torch.backends.cpu.get_cpu_capability()}, "
               f"{device.free_memory(cpu) / 2**30:.1f} GiB free")
    tuning = allocator.tune()
    allocates = (f"as it is: {tuning.refusal}" if tuning.refusal
                 else f"keeps freed memory ({', '.join(tuning.done)})")
    click.echo(f"{'allocator':<14}{allocates}")
    refusal = device.cuda_refusal()
    if refusal:
        click.echo(f"{'cuda':<14}not used: {refusal}")
    else:
        for index in range(torch.cuda.device_count()):
            click.echo(f"{f'cuda:{index}':<14}{torch.cuda.get_device_name(index)}")
    click.echo()
    for name, reason in explain().items():
        click.echo(f"{name:<14}{'not used: ' + reason if reason else 'ready'}")
    click.echo(f"\n{'store':<14}{store.home()}")
