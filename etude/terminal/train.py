"""`etude grpo`, and every other verb that trains: settings in, a run folder out.

Each verb is a row of TRAININGS: the record that its config file fills, and what runs it. Here is what they
have in common: reading the config, resuming, the dry run, the live view, and stopping.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from etude.recipes import dpo, grpo, ppo, reward_model, sft
from etude.recipes.assembly import settled
from etude.runlog import RunReader
from etude.terminal.config import Configured, leaves, read_config
from etude.terminal.live import Live
from etude.terminal.options import HelpWanted, UsageError, Verb
from etude.train.run import Job, Report, free_folder

FLAGS: Mapping[str, bool] = {"resume": True, "dry-run": False}
"""Words of the verbs that are no settings → whether a value follows."""


@dataclass(frozen=True)
class Training:
    """A verb. config: its record of tables, with a table `run`. steps: trains, step by step. probe: what
    --dry-run prints. example: a command that works."""

    config: type
    steps: Callable[[Any, Job], Iterator[Report]]
    example: str
    probe: Callable[[Any, Job], str]


TRAININGS: Mapping[str, Training] = {
    "sft": Training(
        sft.SftConfig,
        sft.steps,
        "etude sft examples/sft.toml --batches.epochs 3\n"
        "    etude sft --data.train conversations.jsonl --data.held_out_size 100 --lora.rank 16",
        sft.probe,
    ),
    "reward-model": Training(
        reward_model.RewardModelConfig,
        reward_model.steps,
        "etude reward-model examples/reward_model.toml\n"
        "    etude reward-model --data.train pairs.jsonl --data.held_out_size 200",
        reward_model.probe,
    ),
    "dpo": Training(
        dpo.DpoConfig,
        dpo.steps,
        "etude dpo examples/dpo.toml --dpo.loss ipo\n"
        "    etude dpo --data.train pairs.jsonl --data.held_out_size 200 --lora.rank 16",
        dpo.probe,
    ),
    "grpo": Training(
        grpo.GrpoConfig,
        grpo.steps,
        "etude grpo examples/add.toml --run.steps 40\n"
        '    etude grpo --data.train "task:add?low=1&high=9" --data.held_out_size 30\n'
        "    etude grpo --data.train mine.jsonl --reward my_rewards.py:polite --lora.rank 16",
        grpo.probe,
    ),
    "ppo": Training(
        ppo.PpoConfig,
        ppo.steps,
        "etude ppo examples/ppo.toml\n"
        "    etude ppo examples/ppo.toml --ppo.critic runs/reward-model-001/final --ppo.lam 0.95",
        ppo.probe,
    ),
}


def main(verb: Verb, argv: Sequence[str]) -> int:
    """The verb; returns 0. EtudeError and UsageError for what the user can mend."""
    training = TRAININGS[verb.name]
    try:
        read: Configured[Any] = read_config(training.config, argv, FLAGS)
    except HelpWanted:
        sys.stdout.write(help_text(verb, training))
        return 0
    if "resume" in read.flags:
        read, job = resumed(verb, training, read)
    else:
        job = Job(free_folder(read.config.run, verb.name), asdict(read.config), read.written)
    if "dry-run" in read.flags:
        sys.stdout.write(training.probe(read.config, job))
        return 0
    config, job = settled(read.config, job)
    begun, how = "going on" if job.resume else "a new run", f"products in {config.compute.dtype}"
    print(f"{job.folder}: {begun}, {how}", file=sys.stderr)
    stopped, how_to_go_on = False, f"to go on: etude {verb.name} --resume {job.folder}"
    try:
        with Live(f"{verb.name} {job.folder.name}, {how}") as live:
            for report in training.steps(config, job):
                live.show(report)
                stopped = report.stopped
    except KeyboardInterrupt:
        if (job.folder / "run.json").exists():
            print(f"\nstopped at once; {how_to_go_on}", file=sys.stderr)
        raise
    if stopped:
        print(f"stopped; {how_to_go_on}", file=sys.stderr)
    else:
        print(f"done: etude runs {job.folder}", file=sys.stderr)
    print(job.folder)
    return 0


def resumed(verb: Verb, training: Training, read: Configured[Any]) -> tuple[Configured[Any], Job]:
    """The settings that a run was begun with. UsageError for others beside them."""
    folder = Path(read.flags["resume"])
    if read.written:
        name, where = next(iter(read.written.items()))
        raise UsageError(
            f"{where}: a resumed run keeps the settings it has in {folder / 'config.toml'}; leave {name} out"
        )
    reader = RunReader(folder)
    if reader.info.algorithm != verb.name:
        raise UsageError(f"--resume {folder}: this is a run of `etude {reader.info.algorithm}`")
    stored: Configured[Any] = read_config(training.config, [str(folder / "config.toml")], {})
    return Configured(stored.config, {}, read.flags), Job(folder, reader.config, resume=True)


def help_text(verb: Verb, training: Training) -> str:
    """Usage, an example, and all settings with their defaults."""
    lines = [
        f"usage: etude {verb.name} [CONFIG.toml] [--table.setting VALUE …] [--dry-run]",
        f"       etude {verb.name} --resume RUN_FOLDER",
        "",
        f"{verb.summary[0].upper()}{verb.summary[1:]}.",
        "",
        f"    {training.example}",
        "",
        "A config file has the settings in tables; what stands on the command line wins.",
    ]
    hints = get_type_hints(training.config)
    for table in fields(training.config):
        kinds = [kind for kind in (hints[table.name], *get_args(hints[table.name])) if is_dataclass(kind)]
        if not kinds:
            lines += ["", f"  --{table.name}"]
            continue
        record: Any = kinds[0]
        lines += ["", f"[{table.name}]"]
        text = (record.__doc__ or "").strip().splitlines()
        lines += [f"  {line.strip()}" if line.strip() else "" for line in text]
        for name, _ in leaves(record):
            lines.append(f"    --{table.name}.{name} ({_default(record, name)})")
    return "\n".join(lines) + "\n"


def _default(record: Any, name: str) -> str:
    """How a default would be written."""
    value: Any = record()
    for part in name.split("."):
        value = getattr(value, part)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
