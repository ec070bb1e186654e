"""What each subcommand does with its flags."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import config_flags

from aigc_jax.cli.flags import (
    BENCH_OPTIONS,
    FLAGS,
    IMAGE_OPTIONS,
    PROCESS_OPTIONS,
    SAMPLE_OPTIONS,
    TEXT_OPTIONS,
)
from aigc_jax.core.errors import UserError
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.preemption import PreemptionHandler

STOP = PreemptionHandler()  # the requests to stop that this process is given


def train() -> None:
    from aigc_jax.runs import api

    join_others()
    api.train(FLAGS.config, FLAGS.workdir, stop=STOP)
    if kv_store.joined()[0] == 0:
        print(f"trained: {FLAGS.workdir}")


def join_others() -> None:
    from aigc_jax.distributed.processes import join

    join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.join_timeout)


def evaluate() -> None:
    from aigc_jax.modalities.text.metrics.classification_report import Report
    from aigc_jax.runs import api
    from aigc_jax.training.metric_log import finite_json

    data_dir = FLAGS.data_dir if FLAGS["data_dir"].present else ""
    options = given(IMAGE_OPTIONS)
    if FLAGS.images:
        metrics = judge_images(data_dir, options)
    else:
        if FLAGS.out:
            raise UserError("--out is for --images=…: other pictures go into the workdir")
        options |= given(["generations", "likelihood", "sigma_rel", "mesh"])
        options |= {"seed": FLAGS.seed} if FLAGS["seed"].present else {}
        metrics = api.evaluate(FLAGS.workdir, data_dir, FLAGS.source or "", **options)
    if "report" in metrics:
        print(Report.from_json(metrics["report"]).table(), end="\n\n")
    print(json.dumps(finite_json(metrics)))


def judge_images(data_dir: str, options: dict[str, Any]) -> dict[str, Any]:
    from aigc_jax.runs import api

    if "samples" in options or FLAGS["seed"].present:
        raise UserError("--samples and --seed are for drawing: --images=… are judged as they are")
    where = dict(workdir=FLAGS.workdir or "", data_dir=data_dir, out=FLAGS.out or "")
    return api.judge_images(FLAGS.images, FLAGS.source or "", **where, **options)


def sample() -> None:
    from aigc_jax.modalities.text.sample_file import join_texts
    from aigc_jax.runs import api

    if FLAGS.stream and (FLAGS.num or 1) > 1:
        raise UserError("--stream shows one text: leave out --num")
    if FLAGS.stream and len(FLAGS.prompt or ()) > 1:
        raise UserError("--stream shows one text: give one --prompt")
    prompt = FLAGS.prompt[0] if FLAGS.prompt and len(FLAGS.prompt) == 1 else FLAGS.prompt
    begun = []

    def show(piece: str) -> None:
        # The prompt comes with the first piece: a family that cannot stream has not begun.
        print(piece if begun else f"{prompt or ''}{piece}", end="", flush=True)
        begun.append(True)

    samples = api.sample(
        FLAGS.workdir,
        FLAGS.num,
        FLAGS.seed,
        prompt=prompt,
        show=show if FLAGS.stream else None,
        **given(["sigma_rel", "image", "mask", "mesh", *SAMPLE_OPTIONS]),
    )
    out = FLAGS.out or os.path.join(FLAGS.workdir, "samples", f"seed_{FLAGS.seed}")
    path = api.save(samples, out)
    if FLAGS.stream:
        print()
    elif isinstance(samples, list):
        print(join_texts(samples))
    print(f"saved: {path}", file=sys.stderr if isinstance(samples, list) else sys.stdout)


def given(names: Sequence[str]) -> dict[str, Any]:
    """The flags of these names that were given."""
    values = {name: FLAGS[name].value for name in names}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}


def chat() -> None:
    from aigc_jax.runs.chat import Chat, talk

    talk(Chat(FLAGS.workdir, FLAGS.system, FLAGS.seed, **given(TEXT_OPTIONS)))


def convert() -> None:
    from aigc_jax.interop.convert import export_model, import_model

    source, target = FLAGS["from"].value, FLAGS.to
    if bool(source) == bool(target):
        raise UserError(
            "'aigc convert' needs either --from=hf:DIR (or gguf:FILE, diffusers:DIR, peft:DIR) or"
            " --to=hf:DIR (or diffusers:DIR, peft:DIR)"
        )
    if FLAGS.dtype and not (target or "").startswith(("hf:", "diffusers:")):
        raise UserError("--dtype says how --to=hf:DIR is written: leave it out here")
    if FLAGS.base and not source:
        raise UserError("--base is for --from=peft:DIR: leave it out here")
    if source:
        import_model(source, FLAGS.workdir, FLAGS.base or "")
        print(f"converted: {FLAGS.workdir}")
        text = "" if source.startswith("diffusers:") else " --prompt=… --stream"
        print(f"try it with aigc sample --workdir={FLAGS.workdir}{text}")
    else:
        print(f"converted: {export_model(FLAGS.workdir, target, FLAGS.dtype)}")


def prepare() -> None:
    from aigc_jax.modalities.prepare import prepare

    path = prepare(
        FLAGS["from"].value,
        FLAGS.name,
        FLAGS.data_dir,
        image_size=FLAGS.image_size,
        text_field=FLAGS.text_field,
        label_field=FLAGS.label_field,
    )
    print(f"prepared: {path}")
    kind = FLAGS["from"].value.partition(":")[0]
    form = {"messages": " --config.data.format=chat", "conll": " --config.data.format=tags"}
    print(f"train on it with --config.data.source=tfds:{FLAGS.name}"
          f" --config.data.data_dir={FLAGS.data_dir}{form.get(kind, '')}")  # fmt: skip


def bench() -> int | None:
    from aigc_jax.core.workdir import write_text_atomically
    from aigc_jax.experiment import build
    from aigc_jax.tools.bench import check
    from aigc_jax.tools.bench.measure import measure
    from aigc_jax.tools.bench.table import table

    baselines = [name for name in ("check", "write_baseline") if FLAGS[name].present]
    if baselines:
        others = [n for n in BENCH_OPTIONS if FLAGS[n].present]
        if others or len(baselines) > 1:
            raise UserError(
                f"--{baselines[0]} times the recipes of a baseline: leave out"
                f" --{(others or baselines[1:])[0]}"
            )
        if FLAGS.check:
            return check.check(FLAGS.check)
        check.write(FLAGS.write_baseline)
        print(f"written: {FLAGS.write_baseline}")
        return None
    options = dict(shape=FLAGS.synthetic or "", folder=FLAGS.profile or "")
    report = measure(build.parse_config(FLAGS.config), seconds=FLAGS.seconds, **options)
    print(table(report))
    if FLAGS.json:
        write_text_atomically(FLAGS.json, json.dumps(report, indent=1) + "\n")
        print(f"saved: {FLAGS.json}")
    return None


def plan() -> int:
    from aigc_jax.tools.plan.command import run_plan

    if FLAGS.sweep_mesh and FLAGS.fit:
        raise UserError("--sweep_mesh tries meshes and --fit changes of one: leave out one of them")
    options = dict(shape=FLAGS.synthetic or "", slices=FLAGS.slices, tokens=FLAGS.tokens or 0.0)
    how = "sweep" if FLAGS.sweep_mesh else "fit" if FLAGS.fit else ""
    return run_plan(
        FLAGS.config, FLAGS.topology, how=how, tries=FLAGS.tries, json_file=FLAGS.json, **options
    )


def doctor() -> int:
    from aigc_jax.tools.doctor import examine, examine_workdir

    if FLAGS.distributed:
        from aigc_jax.distributed.allreduce_bench import examine_network

        if FLAGS.workdir:
            raise UserError("--distributed is about the network: leave out --workdir")
        join_others()
        return examine_network()
    if any(FLAGS[name].present for name in PROCESS_OPTIONS):
        raise UserError("to time the network between processes, add --distributed")
    return examine_workdir(FLAGS.workdir) if FLAGS.workdir else examine()


def sweep() -> None:
    from aigc_jax.tools.sweep.search_space import Search
    from aigc_jax.tools.sweep.sweep import sweep

    print(sweep(
        Search.of(FLAGS.config, FLAGS.search, FLAGS.metric, FLAGS.maximize),
        FLAGS.workdir,
        config_file=config_flags.get_config_filename(FLAGS["config"]),
        trials=FLAGS.trials,
        prune=FLAGS.prune,
        storage=FLAGS.storage or "",
        seed=FLAGS.seed if FLAGS["seed"].present else None,
        flags=("--deterministic",) if FLAGS.deterministic else (),
        stop=STOP,
    ))  # fmt: skip


def demo() -> None:
    from aigc_jax.tools.demo import demonstrate

    demonstrate(FLAGS.workdir)


RUN: dict[str, Callable[[], int | None]] = dict(
    train=train,
    eval=evaluate,
    sample=sample,
    chat=chat,
    convert=convert,
    prepare=prepare,
    bench=bench,
    plan=plan,
    doctor=doctor,
    sweep=sweep,
    demo=demo,
)
