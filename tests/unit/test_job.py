"""From a command line to a committed artifact: what runs, what is refused, in which words, with which status.

The stages here are one line each, and Ray is not started; everything else is the jobs' own way.
"""

import errno
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sbp_ray import cluster, job
from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import Config
from sbp_ray.errors import SbpError
from sbp_ray.job import Job, Stats
from sbp_ray.stage_table import FOLDERS, STAGES

Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds small.yaml, its input and, later, the run directory `run`."""
    text = Path(__file__).with_name("small.yaml").read_text()
    (tmp_path / "docs.jsonl").write_text('{"text": "one"}\n')
    text = text.replace("INPUT", str(tmp_path / "docs.jsonl")).replace("RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "small.yaml").write_text(text)

    @contextmanager
    def no_ray(config: Config, jobs: list[str]) -> Iterator[None]:
        yield

    monkeypatch.setattr(cluster, "connected", no_ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def ran() -> list[str]:
    """Names of the stages that ran, in order."""
    return []


@pytest.fixture
def run(folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("embed", "embed.max_tokens=512")`: the exit status of `python jobs/embed.py --config small.yaml …`."""

    def stage(job: Job) -> Stats:
        ran.append(job.stage.name)
        for made in job.inputs.values():
            assert made.manifest() is not None
        job.output.write_bytes("part", job.stage.name.encode())
        if job.stage.name == "eval":
            job.output.write_bytes("summary.txt", b"the table\n")
        return {"documents": 1}

    def run_job(name: str, *arguments: str, stage: Callable[[Job], Stats] = stage) -> int:
        monkeypatch.setattr("sys.argv", [f"jobs/{name}.py", "--config", str(folder / "small.yaml"), *arguments])
        with pytest.raises(SystemExit) as ended:
            if name == "pipeline":
                job.main_pipeline({each.job: stage for each in STAGES})
            else:
                job.main(name, stage)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run_job


def _manifest(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "run" / FOLDERS[name] / "manifest.json").read_text())


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the user got."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def fail_half_way(job: Job) -> Stats:
    job.output.write_bytes("first-half", b"x")
    raise SbpError("the disk is full: make room")


def test_the_pipeline_runs_every_stage_once_in_order_and_shows_the_summary(
    run: Run, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pipeline") == 0
    assert ran == [stage.name for stage in STAGES]
    assert "the table\nreport: " in capsys.readouterr().out
    assert run("pipeline") == 0
    assert len(ran) == len(STAGES)


def test_a_manifest_tells_what_it_was_made_from_and_what_came_of_it(run: Run, folder: Path) -> None:
    assert run("ingest") == 0
    assert run("embed", "embed.max_tokens=512") == 0
    manifest = _manifest(folder, "embeddings")
    assert manifest["artifact"] == "embeddings"
    assert manifest["settings"]["embed"]["max_tokens"] == 512
    assert manifest["inputs"] == {"corpus": _manifest(folder, "corpus")["fingerprint"]}
    assert manifest["stats"] == {"documents": 1}
    assert manifest["wall_s"] >= 0


def test_both_arms_are_one_job_with_two_artifacts(run: Run, ran: list[str], folder: Path) -> None:
    assert run("pipeline") == 0
    assert _manifest(folder, "base_lm")["settings"]["pretrain"]["arm"] == "repetition"
    assert _manifest(folder, "lm")["settings"]["pretrain"]["arm"] == "sbp"
    assert run("pretrain", "pretrain.arm=sbp") == 0
    assert run("pretrain", "pretrain.arm=repetition") == 0
    assert len(ran) == len(STAGES)


def test_a_changed_setting_is_refused_by_name(run: Run, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest") == 0
    assert run("ingest", "ingest.num_shards=5") == 1
    message = _error(capsys)
    assert "1_corpus was made with ingest.num_shards=4, which is 5 now" in message
    assert message.endswith("use a new run_dir, or --redo ingest")
    assert ran == ["ingest"]


def test_a_changed_input_file_is_refused(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest") == 0
    (folder / "docs.jsonl").write_text('{"text": "another, longer"}\n')
    assert run("ingest") == 1
    assert "1_corpus was made with other input files" in _error(capsys)


def test_an_edit_of_equal_length_is_noticed_at_head_middle_and_tail(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = folder / "long.jsonl"
    line = json.dumps({"text": "a" * 199_988}) + "\n"  # 200,003 bytes: more than three windows of 65,536
    long.write_text(line)
    assert run("ingest", f"ingest.input=[{long}]") == 0
    for place in (20, 100_000, len(line) - 5):
        long.write_text(line[:place] + "b" + line[place + 1 :])
        assert run("ingest", f"ingest.input=[{long}]") == 1
        assert "1_corpus was made with other input files" in _error(capsys)
    long.write_text(line)
    assert run("ingest", f"ingest.input=[{long}]") == 0


def test_a_changed_evaluation_set_is_refused_where_it_decides_the_result(
    run: Run, ran: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "arc.jsonl").write_text('{"query": "Why?"}\n')
    sets = f"decontaminate.evaluation_sets=[{folder}/arc*.jsonl]"
    assert run("pipeline", sets) == 0
    for name in ("corpus", "synthetic"):
        assert _manifest(folder, name)["settings"]["decontaminate"]["evaluation_sets"] == [f"{folder}/arc*.jsonl"]
    assert run("pipeline", sets) == 0
    assert len(ran) == len(STAGES)
    (folder / "arc.jsonl").write_text('{"query": "Why not?"}\n')
    for name in ("ingest", "embed"):  # which reads the corpus
        assert run(name, sets) == 1
        assert "1_corpus was made with other evaluation sets" in _error(capsys)
    assert run("synthesize", sets, f"artifacts.corpus={folder}/run/1_corpus") == 1
    assert "7_synthetic was made with other evaluation sets" in _error(capsys)
    (folder / "arc.jsonl").unlink()
    (folder / "docs.jsonl").unlink()
    assert run("pipeline", sets) == 0  # what is finished needs its input no more
    assert run("synthesize", "--redo", "synthesize", sets) == 1
    assert _error(capsys).startswith(f"decontaminate.evaluation_sets: {folder}/arc*.jsonl: there is no such file")
    assert len(ran) == len(STAGES)


def test_settings_that_change_no_result_may_change_between_runs(run: Run, ran: list[str]) -> None:
    """Half a training's memory, say, after it ran out of memory at step 60,000."""
    assert run("pipeline") == 0
    free = [
        "ingest.resources={num_workers: 3, num_cpus: 2}",
        "embed.resources.batch_tokens=512",
        "pretrain.resources={micro_batch_rows: 2, checkpoint_every: 7, compile: true}",
        "tune.resources={micro_batch_rows: 1, activation_checkpointing: full}",
        "engine.resources={enforce_eager: true, tensor_parallel_size: 2, checks_model: false}",
        "eval.resources.batch_tokens=512",
        "ingest.max_bad_share=0.5",
        "synthesize.max_bad_share=0.5",
    ]
    assert run("pipeline", *free) == 0
    assert len(ran) == len(STAGES)


def test_how_much_may_fail_may_change_over_a_stage_that_stopped_for_it(
    run: Run, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def too_much(job: Job) -> Stats:
        if job.stage.name == "synthesize":
            raise SbpError("4 samples could not be written")
        return {}

    assert run("pipeline", stage=too_much) == 1
    assert run("synthesize", "synthesize.max_bad_share=0.5") == 0
    assert ran == ["synthesize"]


def test_a_setting_of_another_stage_may_change(run: Run, ran: list[str]) -> None:
    assert run("ingest") == 0
    assert run("ingest", "embed.max_tokens=512") == 0
    assert ran == ["ingest"]


def test_redo_removes_what_followed_and_nothing_else(run: Run, ran: list[str], folder: Path) -> None:
    assert run("pipeline") == 0
    ran.clear()
    assert run("pipeline", "--redo", "tune", "tune.num_epochs=2") == 0
    assert ran == ["tune", "synthesize", "pretrain-sbp", "eval"]
    assert _manifest(folder, "synthesizer")["settings"]["tune"]["num_epochs"] == 2


def test_redo_leaves_folders_that_are_not_ours(run: Run, folder: Path) -> None:
    assert run("ingest") == 0
    theirs = folder / "run" / FOLDERS["embeddings"] / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    assert run("ingest", "--redo", "ingest") == 0
    assert theirs.read_text() == "mine"


OTHER_SPLIT = "ingest.validation_share=0.25"


def test_what_follows_from_a_corpus_that_is_made_anew_with_other_settings_is_refused_before_anything_runs(
    run: Run, ran: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pipeline") == 0
    shutil.rmtree(folder / "run" / FOLDERS["corpus"])
    ran.clear()
    assert run("pipeline", OTHER_SPLIT) == 1
    assert "2_embeddings was made with other corpus (" in _error(capsys)
    assert ran == []
    assert run("ingest", OTHER_SPLIT) == 0
    assert run("embed", OTHER_SPLIT) == 1
    assert "2_embeddings was made with other corpus (" in _error(capsys)
    assert run("pipeline", "--redo", "ingest", OTHER_SPLIT) == 0
    assert ran == ["ingest", *(stage.name for stage in STAGES)]


def test_what_was_begun_with_another_corpus_is_not_gone_on_with(
    run: Run, ran: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ingest") == 0
    assert run("embed", stage=fail_half_way) == 1
    shutil.rmtree(folder / "run" / FOLDERS["corpus"])
    ran.clear()
    capsys.readouterr()
    assert run("pipeline", OTHER_SPLIT) == 1
    assert "2_embeddings was made with other corpus (" in _error(capsys)
    assert ran == []


def test_an_artifact_that_another_process_begins_meanwhile_is_refused_right_before_its_stage(
    run: Run, ran: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_a_rival(job: Job) -> Stats:
        ran.append(job.stage.name)
        embeddings = Artifact("embeddings", str(folder / "run" / FOLDERS["embeddings"]))
        embeddings.write_json(STARTED, {"fingerprint": "f" * 16, "recipe": {"settings": {}, "inputs": {}}})
        return {}

    assert run("pipeline", stage=with_a_rival) == 1
    assert "2_embeddings was made with other corpus (None then, " in _error(capsys)
    assert ran == ["ingest"]


def test_a_redo_that_cannot_go_on_deletes_nothing(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pipeline") == 0
    (folder / "docs.jsonl").unlink()
    assert run("pipeline", "--redo", "ingest") == 1
    assert "docs.jsonl: there is no such file" in _error(capsys)
    assert run("pipeline", "--redo", "tune", "embed.max_tokens=7") == 1
    assert "2_embeddings was made with embed.max_tokens=256, which is 7 now" in _error(capsys)
    assert all((folder / "run" / name / "manifest.json").exists() for name in FOLDERS.values())


@pytest.mark.parametrize(
    ("name", "redone"), [("tune", ["tune"]), ("pipeline", ["tune", "synthesize", "pretrain-sbp", "eval"])]
)
def test_a_redo_deletes_nothing_before_the_cluster_has_let_it_in(
    run: Run, ran: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, redone: list[str]
) -> None:
    """Another driver holds the run directory there, or the cluster has no room."""

    @contextmanager
    def refusing(config: Config, jobs: list[str]) -> Iterator[None]:
        raise SbpError("in use by another job on this cluster")
        yield

    assert run("pipeline") == 0
    ran.clear()
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "connected", refusing)
        assert run(name, "--redo", "tune", "tune.num_epochs=2") == 1
    assert all((folder / "run" / each / "manifest.json").exists() for each in FOLDERS.values())
    assert run(name, "--redo", "tune", "tune.num_epochs=2") == 0
    assert ran == redone


def test_a_deletion_that_was_cut_off_is_finished_and_its_rest_never_adopted(
    run: Run, ran: list[str], folder: Path
) -> None:
    assert run("pipeline") == 0
    embeddings = folder / "run" / FOLDERS["embeddings"]
    (embeddings / "removal.json").write_text("{}")
    (embeddings / "manifest.json").unlink()
    (embeddings / "train").mkdir()
    (embeddings / "train" / "part-00007.parquet").write_bytes(b"old")
    ran.clear()
    assert run("pipeline") == 0
    assert ran == ["embed"]
    assert sorted(path.name for path in embeddings.iterdir()) == ["manifest.json", "part", "started.json"]


def test_an_artifact_whose_folder_is_the_run_directory_is_deleted_beneath_the_lock(
    run: Run, ran: list[str], folder: Path
) -> None:
    own = ("run_dir=" + str(folder / "corpus"), "artifacts.corpus=" + str(folder / "corpus"))
    assert run("ingest", *own) == 0
    lock = (folder / "corpus" / "run.lock").stat().st_ino
    assert run("ingest", "--redo", "ingest", *own) == 0
    assert ran == ["ingest", "ingest"]
    assert (folder / "corpus" / "run.lock").stat().st_ino == lock


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("embed", "1_corpus is not there yet: run jobs/ingest.py first"),
        ("tune", "1_corpus is not there yet: run jobs/ingest.py first"),
        ("neighbors", "2_embeddings is not there yet: run jobs/embed.py first"),
    ],
)
def test_a_stage_before_its_input_names_the_job_to_run(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, missing: str
) -> None:
    assert run(name) == 1
    assert _error(capsys).endswith(missing)


def test_an_arm_before_its_input_names_the_job_and_the_arm(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ingest", "embed", "neighbors", "pair"):
        assert run(name) == 0
    assert run("tune") == 1
    assert _error(capsys).endswith(
        "5_base_lm is not there yet: run jobs/pretrain.py first with pretrain.arm=repetition"
    )


def test_an_input_without_its_manifest_is_not_there(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest") == 0
    (folder / "run" / FOLDERS["corpus"] / "manifest.json").unlink()
    assert run("embed") == 1
    assert "1_corpus is not there yet" in _error(capsys)


def test_a_stage_that_failed_goes_on_where_it_was(run: Run, folder: Path) -> None:
    def go_on(job: Job) -> Stats:
        assert job.output.exists("first-half")
        return {}

    assert run("ingest", stage=fail_half_way) == 1
    assert not (folder / "run" / FOLDERS["corpus"] / "manifest.json").exists()
    assert run("ingest", "ingest.num_shards=5") == 1  # begun with other settings: not mixed
    assert run("ingest", stage=go_on) == 0


def test_half_written_files_are_gone_once_the_artifact_is_complete(run: Run, folder: Path) -> None:
    half = folder / "run" / FOLDERS["corpus"] / "train" / ".tmp-part-00000.parquet-0f"
    at_start: list[bool] = []

    def a_worker_dies(job: Job) -> Stats:
        at_start.append(half.exists())
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(b"half")
        if len(at_start) == 1:
            raise RuntimeError("and the driver with it")
        return {}

    assert run("ingest", stage=a_worker_dies) == 70
    assert half.exists()
    assert run("ingest", stage=a_worker_dies) == 0
    assert at_start == [False, False]
    assert not half.exists()


def test_statuses_tell_the_users_mistakes_from_ours(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def ours(job: Job) -> Stats:
        return {"share": 1 / 0}

    def interrupted(job: Job) -> Stats:
        raise KeyboardInterrupt

    assert run("ingest", stage=ours) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert run("ingest", stage=interrupted) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert run("ingest", "--redo", "ingset") == 1
    assert "--redo: invalid choice: 'ingset'" in _error(capsys)
    assert run("ingest") == 0


def test_who_has_redone_a_stage_is_told_to_go_on_without_redo(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the same command would delete what it has made."""

    def interrupted(job: Job) -> Stats:
        raise KeyboardInterrupt

    told = "from now on run this command without --redo"
    assert run("ingest") == 0
    assert told not in capsys.readouterr().err
    assert run("ingest", "--redo", "ingest", stage=interrupted) == 130
    said = capsys.readouterr().err
    assert told in said
    assert said.splitlines()[-1] == (
        "interrupted: run the same command again (without --redo, once that has deleted) to go on from here"
    )


def test_a_second_pipeline_on_one_run_directory_is_refused(
    run: Run, ran: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ingest") == 0
    before = _manifest(folder, "corpus")
    with open(folder / "run" / "run.lock", "a+") as lock:  # as the first pipeline holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("4711")
        lock.flush()
        assert run("pipeline", "--redo", "ingest") == 1
        assert _error(capsys).endswith("run is in use by process 4711: wait for it to end, or take another run_dir")
    assert _manifest(folder, "corpus") == before
    assert ran == ["ingest"]
    assert run("ingest") == 0


def test_a_relative_run_directory_is_refused_in_a_submitted_job(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert run("ingest", "run_dir=runs/demo") == 1
    assert _error(capsys).startswith("run_dir='runs/demo' is relative, and a submitted job runs in a throw-away copy")


def test_a_relative_run_directory_is_made_absolute_elsewhere(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run("ingest", "run_dir=here") == 0
    assert (folder / "here" / FOLDERS["corpus"] / "manifest.json").is_file()


def test_a_run_directory_that_cannot_be_made_is_named(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("")
    assert run("ingest", f"run_dir={folder}/file/run") == 1
    assert f"run_dir={folder}/file/run: cannot be made or written: " in _error(capsys)
    assert not (folder / "run").exists()


def test_a_run_directory_that_cannot_be_written_is_named(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in the lock's place, since the superuser may write anywhere else."""
    (folder / "run" / "run.lock").mkdir(parents=True)
    assert run("ingest") == 1
    assert _error(capsys) == f"run_dir={folder}/run: cannot be made or written: Is a directory: choose another"


# Artifacts that several runs share


@pytest.fixture
def shared(run: Run, ran: list[str], folder: Path) -> str:
    """The folder of a finished corpus of another run."""
    assert run("ingest", f"run_dir={folder}/other") == 0
    ran.clear()
    return f"{folder}/other/1_corpus"


def test_a_shared_artifact_is_read_where_it_lies(run: Run, ran: list[str], folder: Path, shared: str) -> None:
    assert run("embed", f"artifacts.corpus={shared}") == 0
    assert ran == ["embed"]
    assert (
        _manifest(folder, "embeddings")["inputs"]["corpus"]
        == json.loads(Path(shared, "manifest.json").read_text())["fingerprint"]
    )
    assert not (folder / "run" / FOLDERS["corpus"]).exists()
    made_from = {key: _manifest(folder, "embeddings")[key] for key in ("fingerprint", "settings", "inputs")}
    assert "artifacts" not in json.dumps(made_from)  # where it lies is no part of what it is


def test_a_pipeline_takes_over_a_shared_artifact_made_with_the_same_settings(
    run: Run, ran: list[str], shared: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pipeline", f"artifacts.corpus={shared}", "ingest.num_shards=5") == 1
    assert "1_corpus was made with ingest.num_shards=4, which is 5 now: make them equal, or take it out" in _error(
        capsys
    )
    assert run("pipeline", f"artifacts.corpus={shared}") == 0
    assert ran == [stage.name for stage in STAGES if stage.name != "ingest"]


def test_models_of_both_arms_may_be_another_runs(run: Run, ran: list[str], folder: Path) -> None:
    assert run("pipeline", f"run_dir={folder}/other") == 0
    ran.clear()
    others = [f"artifacts.{noun}={folder}/other/{FOLDERS[noun]}" for noun in ("base_lm", "lm")]
    assert run("pipeline", *others) == 0
    assert ran == [stage.name for stage in STAGES if stage.job != "pretrain"]


def test_a_shared_artifact_that_is_finished_needs_its_input_files_no_more(run: Run, folder: Path, shared: str) -> None:
    (folder / "docs.jsonl").unlink()
    assert run("pipeline", f"artifacts.corpus={shared}") == 0


def test_a_shared_artifact_is_never_deleted(
    run: Run, folder: Path, shared: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pipeline", "--redo", "ingest", f"artifacts.corpus={shared}") == 1
    assert "belongs to another run, and nothing is deleted there" in _error(capsys)
    assert Path(shared, "manifest.json").exists()


def test_what_follows_in_the_run_is_deleted_and_what_lies_outside_stays(run: Run, folder: Path) -> None:
    assert run("pipeline", f"run_dir={folder}/other") == 0
    others = f"artifacts.synthesizer={folder}/other/6_synthesizer"
    for name in ("ingest", "embed", "synthesize"):
        assert run(name, others) == 0
    assert run("embed", "--redo", "embed", others) == 0
    assert (folder / "other" / FOLDERS["synthesizer"] / "manifest.json").exists()
    assert not (folder / "run" / FOLDERS["synthetic"]).exists()


@pytest.fixture
def linked(run: Run, ran: list[str], folder: Path) -> Path:
    """The synthesizer of another run, to which a link in this one leads; the rest of this run is its own."""
    assert run("pipeline", f"run_dir={folder}/other") == 0
    theirs = folder / "other" / FOLDERS["synthesizer"]
    (folder / "run").mkdir()
    (folder / "run" / FOLDERS["synthesizer"]).symlink_to(theirs)
    ran.clear()
    return theirs


def test_an_artifact_that_is_linked_is_read_and_neither_written_nor_deleted(
    run: Run, ran: list[str], folder: Path, linked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = linked / ".tmp-part"
    half.write_bytes(b"of a job that holds the other run's lock")
    before = {path: path.read_bytes() for path in linked.iterdir()}
    assert run("pipeline") == 0
    assert ran == [stage.name for stage in STAGES if stage.name != "tune"]
    assert run("pipeline", "--redo", "tune") == 1
    assert _error(capsys) == (
        f"{folder}/run/6_synthesizer (a link to {linked}) belongs to another run, and nothing is deleted there: "
        "use --redo tune in its own run, or take it out"
    )
    assert run("pipeline", "--redo", "ingest") == 0
    assert run("tune", "tune.num_epochs=2") == 1
    assert "6_synthesizer (a link to " in (said := _error(capsys))
    assert "was made with tune.num_epochs=" in said
    (linked / "manifest.json").unlink()
    assert run("tune") == 1
    assert f"(a link to {linked}) is given, and not finished: finish it in its own run" in _error(capsys)
    assert {path: path.read_bytes() for path in linked.iterdir()} == {
        path: content for path, content in before.items() if path.name != "manifest.json"
    }


def test_a_run_directory_that_is_itself_a_link_holds_its_own_artifacts(run: Run, ran: list[str], folder: Path) -> None:
    (folder / "disk").mkdir()
    (folder / "run").symlink_to(folder / "disk")
    assert run("ingest") == 0
    assert run("ingest", "--redo", "ingest") == 0
    assert ran == ["ingest", "ingest"]


def test_a_link_that_leads_nowhere_is_one_line(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    (folder / "run" / FOLDERS["corpus"]).symlink_to(folder / "gone")
    assert run("embed") == 1
    assert _error(capsys) == f"{folder}/run/1_corpus (a link to {folder}/gone): no finished artifact lies there"


def test_a_base_lm_may_stand_in_for_the_synthesizer(run: Run, ran: list[str], folder: Path) -> None:
    for name in ("ingest", "embed", "pretrain"):
        assert run(name) == 0
    stand_in = f"artifacts.synthesizer={folder}/run/5_base_lm"
    assert run("synthesize", stand_in) == 0
    made = _manifest(folder, "synthetic")["inputs"]
    assert made["synthesizer"] == _manifest(folder, "base_lm")["fingerprint"]
    assert run("synthesize", "--redo", "synthesize", stand_in) == 0
    assert run("tune", "--redo", "tune", stand_in) == 1
    assert _manifest(folder, "base_lm")["stage"] == "pretrain-repetition"


def test_a_shared_artifact_that_is_not_finished_or_not_there_is_refused(
    run: Run, folder: Path, shared: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(shared, "manifest.json").unlink()
    assert run("ingest", f"artifacts.corpus={shared}") == 1
    assert "is given, and not finished" in _error(capsys)
    assert run("embed", f"artifacts.corpus={folder}/nowhere") == 1
    assert _error(capsys) == f"artifacts.corpus={folder}/nowhere: no finished artifact lies there"


def test_an_unknown_artifact_is_named_with_the_nearest_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("embed", "artifacts.corpsu=x") == 1
    assert "corpsu: no such artifact; did you mean corpus?" in _error(capsys)


def test_stages_read_only_what_earlier_stages_write() -> None:
    written: set[str] = set()
    for stage in STAGES:
        assert set(stage.reads) <= written
        written.add(stage.writes)
    assert written == set(FOLDERS)


def test_a_full_disk_is_one_line_wherever_it_is_met(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def full(job: Job) -> Stats:
        raise OSError(errno.ENOSPC, "No space left on device", "here")

    assert run("ingest", stage=full) == 1
    assert _error(capsys) == (
        "there is no room to write ([Errno 28] No space left on device: 'here'): make room, and run the same command "
        "again to go on"
    )
    assert run("ingest") == 0


def test_a_corpus_too_small_for_the_synthetic_share_is_refused_before_anything_is_made_of_it(
    run: Run, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def ingest(job: Job) -> Stats:
        ran.append(job.stage.name)
        return {"train": {"documents": 3}}

    assert run("pipeline", stage=ingest) == 1
    assert ran == ["ingest"]
    assert "the synthesis can write" in _error(capsys)


# What it will cost


COUNTED: dict[str, Stats] = {
    "ingest": {"documents": 1000, "tokens": 100_000, "train": {"documents": 800, "tokens": 80_000}},
    "neighbors": {"train": {"histogram_all": {"0.70": 90_000, "0.75": 3000, "0.80": 1000}}},
    "pair": {"train": {"pairs": 5000}},
}
RATES = str(Path(__file__).parents[2] / "benchmarks/rates.yaml")


def test_a_plan_counts_what_is_done_with_its_settings_and_nothing_else(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """5,000 pairs of 2 x 100 tokens and three marks; else two for each entry of the lists, or 40 for each document."""

    def counting(job: Job) -> Stats:
        job.output.write_bytes("summary.txt", b"")
        return COUNTED.get(job.stage.name, {})

    def planned(*arguments: str) -> list[str]:
        capsys.readouterr()
        assert run("pipeline", "--plan", "--rates", RATES, *arguments) == 0
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tune")]
        return line.split()[1:5]

    assert run("pipeline", "synthesize.samples_per_document=2", stage=counting) == 0
    assert planned() == ["5", "k", "1.0", "M"]
    assert planned("pair.min_cosine=0.8") == ["≤2", "k", "≤406", "k"]
    assert planned("neighbors.num_neighbors=20") == ["≤32", "k", "≤6.5", "M"]
    # Of the size that is given 15 % are held out by default: 850 documents, whatever lies there.
    assert planned("--documents", "1000", "--tokens", "100000", "neighbors.num_neighbors=20")[0] == "≤34"


@pytest.mark.parametrize("arguments", [(), ("--documents", "5"), ("--tokens", "5")])
def test_a_plan_of_a_corpus_of_unknown_size_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run("pipeline", "--plan", "--rates", RATES, *arguments) == 1
    assert "error: no finished corpus of these settings lies in " in (said := capsys.readouterr().err)
    assert said.endswith("/1_corpus: give --documents and --tokens\n")
