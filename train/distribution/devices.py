"""The flags of a run's devices and machines; loads no TensorFlow."""

import dataclasses

from absl import flags

LONGEST_TIMEOUT = 7 * 24 * 3600.0  # seconds
THIS_MACHINE = "local"  # the TPU that `--tpu` without a name means


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices and machines of a run."""

    tpu: str = ""  # a name, or "local"; empty for none
    cluster: str = "auto"  # looks for other workers; "none" does not
    cluster_timeout: float = 300.0  # seconds to wait for a TPU or for other workers
    gpus: int | None = None  # None: all


class _TPUParser(flags.ArgumentParser):
    """Reads `--tpu` as well as `--tpu=NAME`."""

    syntactic_help = "the TPU's name, or nothing"

    def parse(self, argument):
        return {"true": THIS_MACHINE, "false": "", None: ""}.get(argument, argument)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of `Devices`."""
    flags.DEFINE_flag(
        flags.Flag(
            _TPUParser(),
            flags.ArgumentSerializer(),
            "tpu",
            "",
            "Train on a TPU: --tpu takes $TPU_NAME or the TPU of this machine, "
            "--tpu=NAME another one. By default a run uses all GPUs, or else the CPU.",
            boolean=True,
        ),
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "cluster",
        "auto",
        ("auto", "none"),
        "auto: train with all workers that $TF_CONFIG or SLURM names. Each runs this "
        "command, and --workdir must be storage that they share. none: train in this "
        "process alone.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "cluster_timeout",
        Devices.cluster_timeout,
        "Seconds to wait for a TPU or for the other workers.",
        lower_bound=1.0,
        upper_bound=LONGEST_TIMEOUT,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "gpus",
        None,
        "Number of GPUs that each worker uses; it must be the same on all. Default: "
        "all that it sees. With several tasks per node, srun --gpus-per-task assigns "
        "them.",
        lower_bound=0,
        flag_values=flag_values,
    )


def devices_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Devices:
    """Returns the `Devices` that the flags ask for."""
    names = [field.name for field in dataclasses.fields(Devices)]
    return Devices(**{name: flag_values[name].value for name in names})
