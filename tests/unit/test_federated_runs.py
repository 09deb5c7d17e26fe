"""Beginning, re-attaching to and going on with runs; what travels with a job; what users' functions may return."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import client, following, model, stopping, watch
from airflow_mlscale.federated.adapters import job_folder, nvflare_admin, provisioning, run_directory, user_functions
from airflow_mlscale.federated.sites import Site
from airflow_mlscale.runtime import processes
from tests.fakes import federated

CODE = Path(__file__).parents[1] / "fakes"


@pytest.fixture
def runs(tmp_path, monkeypatch) -> client.RunClient:
    monkeypatch.syspath_prepend(str(CODE))
    return client.RunClient(federated.Admin(), tmp_path)


def settings(**changes):
    functions = dict.fromkeys(("model", "client_data", "evaluation_data"), "federated_blobs:build")
    return federated.settings(**functions, **changes)


def record(runs: client.RunClient, **changes) -> None:
    directory = runs.directory("run")
    writer = run_directory.RunWriter(directory, settings().target, 99)
    writer.checkpoint(replace(model.RunState(run_id="run", segment=directory.last_segment()[0]), **changes))


def test_a_run_is_submitted_once_and_keeps_its_deadline(runs):
    assert runs.begin(settings(deadline_at=5.0)).deadline_at == 5.0
    assert runs.begin(settings(deadline_at=9.0)).deadline_at == 5.0
    assert runs.admin.jobs == {"run.1": "job-1"}
    assert runs.directory("run").last_segment() == (1, "job-1")


def test_a_submission_that_was_not_recorded_is_repeated_with_the_same_token_and_content(runs):
    runs.begin(settings())
    (runs.run_store / "run" / "segments" / "0001").unlink()  # the worker died between the two
    runs.begin(settings())
    assert runs.admin.jobs == {"run.1": "job-1"}
    first, second = runs.admin.contents
    assert first == second


@pytest.mark.parametrize("status", ["aborted", "failed", "interrupted"])
def test_a_halted_run_goes_on_in_its_next_segment(runs, status):
    runs.begin(settings())
    runs.directory("run").ask_to_stop()
    record(runs, status=model.Status(status))
    runs.begin(settings())
    assert runs.directory("run").last_segment() == (2, "job-2")
    assert not runs.directory("run").stop_asked()


@pytest.mark.parametrize("status", ["reached", "limit"])
def test_a_run_that_came_to_its_end_is_left_alone(runs, status):
    runs.begin(settings())
    record(runs, status=model.Status(status))
    runs.begin(settings())
    assert len(runs.admin.contents) == 1


def test_a_lost_segment_is_aborted_and_followed_by_the_next_a_bounded_number_of_times(runs):
    runs.begin(settings())
    assert [runs.next_segment("run", "silence") for _ in range(4)] == [2, 3, 4, 5]
    assert runs.admin.aborted == ["job-1", "job-2", "job-3", "job-4"]
    with pytest.raises(errors.FederatedRunFailedError, match="lost 5 times, last because: silence"):
        runs.next_segment("run", "silence")


def test_changes_for_returning_sites_are_no_losses(runs):
    runs.begin(settings())
    record(runs, segment=1, status=model.Status.INTERRUPTED, renewals=4)
    assert [runs.next_segment("run", "sites are back: c") for _ in range(8)][-1] == 9
    with pytest.raises(errors.FederatedRunFailedError, match="lost 5 times"):
        runs.next_segment("run", "silence")  # nine segments, four of them ended for sites


def test_two_who_follow_a_run_begin_one_segment(runs):
    runs.begin(settings())
    assert runs.next_segment("run", "silence", after=1) == 2
    assert runs.next_segment("run", "silence", after=1) == 2
    assert runs.directory("run").last_segment() == (2, "job-2")


def test_a_run_whose_federation_does_not_come_back_names_its_best_model(runs):
    runs.begin(settings())
    record(runs, **{each: getattr(federated.state(0.5, 0.7, 0.6), each) for each in ("rounds", "best_round")})
    runs.admin.connected, runs.restart_patience_s = (), 0.0
    with pytest.raises(errors.TransientError, match=r"3 complete rounds, the best is round 2 .* 0\.7000, .*0002\.npz"):
        runs.next_segment("run", "silence")


class Restarting(federated.Admin):
    """Its sites find it again one by one."""

    def sites(self):
        self.looks = getattr(self, "looks", 0) + 1
        return ("a", "b", "c")[: self.looks + 1]


def test_a_next_segment_waits_a_moment_for_those_who_took_part(runs):
    runs.begin(settings())
    alive = [Site(name=name, answered=3) for name in "abc"]
    record(runs, sites=(*alive, Site(name="d", answered=3, unanswered=2)))
    runs.admin, runs.gather_s = Restarting(), 60.0
    assert runs.next_segment("run", "silence") == 2
    assert runs.admin.looks == 2  # a and b were enough to begin; d was gone before


def test_a_run_that_was_begun_goes_on_after_its_deadline_to_leave_its_model(runs):
    runs.begin(settings(deadline_at=1.0))
    assert runs.next_segment("run", "silence") == 2


def test_a_follower_tells_the_controller_who_is_back(runs, monkeypatch):
    monkeypatch.setattr(following, "MISSING_EVERY_S", 0.0)
    runs.begin(settings())
    follower, directory = runs.follower("run"), runs.directory("run")
    runs.admin.without = ("c",)
    record(runs, segment=1, status=model.Status.RUNNING, sites=(Site(name="c", unanswered=1),))
    follower.look()
    assert directory.returned(1) == []  # no round yet: whoever is missing may still be starting
    record(
        runs, segment=1, status=model.Status.RUNNING, sites=(Site(name="c", unanswered=1),),
        rounds=federated.state(0.5).rounds,
    )  # fmt: skip
    follower.look()
    assert directory.returned(1) == ["c"]
    assert directory.returned(2) == []


def test_a_follower_asks_the_engine_about_a_job_that_does_not_begin(runs):
    runs.begin(settings())
    assert runs.follower("run").look().progress == watch.Progress.LIVES
    runs.admin.statuses["job-1"] = "FINISHED:EXECUTION_EXCEPTION"
    assert runs.follower("run").look().progress == watch.Progress.LOST


def test_too_few_connected_sites_are_named_before_anything_is_written(runs):
    runs.admin.connected = ("a",)
    with pytest.raises(errors.UnreachableError, match="connected are a"):
        runs.begin(settings())
    assert list(runs.run_store.iterdir()) == []


def test_stopping_a_run_that_does_not_listen_aborts_its_job(runs):
    runs.begin(settings())
    runs.stop("run", patience_s=0)
    assert runs.admin.aborted == ["job-1"]
    assert runs.directory("run").stop_asked()


def test_a_job_that_was_aborted_for_good_is_followed_by_no_segment(runs):
    runs.begin(settings())
    runs.stop("run", patience_s=0)
    with pytest.raises(errors.FederatedRunFailedError, match="run run aborted: asked to stop"):
        runs.next_segment("run", "its job ended before the run did")
    assert runs.directory("run").last_segment() == (1, "job-1")


def test_an_unknown_run_has_no_result_but_may_still_come(runs):
    assert runs.met("nobody", stopping.REACHED) is None
    with pytest.raises(errors.InvalidInputError, match="there is no such run"):
        runs.result("nobody")


@pytest.mark.parametrize("run_id", ["../x", "a/b", "", None, ".."])
def test_what_is_no_runs_id_never_becomes_a_path(runs, run_id):
    for use in (runs.directory, runs.result, runs.stop, runs.follower):
        with pytest.raises(errors.InvalidInputError, match="run_id="):
            use(run_id)
    with pytest.raises(errors.InvalidInputError, match="run_id="):
        runs.met(run_id, stopping.Condition(awaited=stopping.Awaited.AT_LEAST, metric="accuracy", value=0.5))
    assert list(runs.run_store.iterdir()) == []


def test_who_waits_is_told_whether_the_run_is_known(runs):
    condition = stopping.Condition(awaited=stopping.Awaited.AT_LEAST, metric="accuracy", value=0.5)
    assert f"run run: there is no such run yet in {runs.run_store}" in runs.awaited("run", condition)
    runs.begin(settings())
    assert runs.awaited("run", condition) == "run run: waiting for accuracy >= 0.5"


@pytest.mark.parametrize("path", ["no_such_module:build", "no.such.package:build"])
def test_a_missing_module_leaves_nothing_behind(runs, path):
    with pytest.raises(errors.InvalidInputError, match="model"):
        runs.begin(federated.settings(model=path, client_data="json:loads", evaluation_data="json:loads"))
    assert list(runs.run_store.iterdir()) == []
    assert runs.admin.contents == []


def test_a_whole_package_travels_and_installed_code_does_not(tmp_path, monkeypatch):
    (tmp_path / "src" / "pack" / "deep").mkdir(parents=True)
    for name in ("pack/__init__.py", "pack/other.py", "pack/deep/__init__.py", "pack/deep/net.py", "lone.py"):
        (tmp_path / "src" / name).write_text(f"# {name}\n")
    (tmp_path / "src" / "pack" / "data.csv").write_text("never sent")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    run = federated.settings(
        model="pack.deep.net:f", client_data="json:loads", evaluation_data="numpy:ones", extra_modules=("lone",)
    )
    folder = job_folder.render(run, segment=1, run_dir=tmp_path / "run", folder=tmp_path / "job")
    custom = folder / "app" / "custom"
    sent = {str(path.relative_to(custom)) for path in custom.rglob("*") if path.is_file()}
    assert sent == {
        "mlscale_run.json",
        "lone.py",
        "pack/__init__.py",
        "pack/other.py",
        "pack/deep/__init__.py",
        "pack/deep/net.py",
    }


def test_a_job_goes_to_the_named_sites_only(tmp_path):
    for sites, expected in ((("a", "b"), ["server", "a", "b"]), (None, ["@ALL"])):
        run = federated.settings(model="json:x", client_data="json:x", evaluation_data="json:x", sites=sites)
        folder = job_folder.render(run, segment=1, run_dir=tmp_path, folder=tmp_path / "job")
        assert {"app": expected} == json.loads((folder / "meta.json").read_text())["deploy_map"]


@pytest.mark.parametrize("returned", [None, [1, 2, 3], (np.ones(3), np.ones(2)), (np.ones(0), np.ones(0)), ([1], [2])])
def test_a_data_function_must_return_two_equally_long_arrays(returned):
    with pytest.raises(errors.InvalidInputError, match="client_data"):
        user_functions.arrays("client_data", "module:function", returned)


def test_a_model_function_gets_the_arguments_it_takes():
    def some(path, width=3): ...
    def every(**arguments): ...

    assert user_functions.accepted(some, {"path": "p", "limit": 5}) == {"path": "p"}
    assert user_functions.accepted(every, {"path": "p", "limit": 5}) == {"path": "p", "limit": 5}


@pytest.mark.parametrize("path", ["no_such_module:f", "json:no_such_function", "json:__doc__"])
def test_a_function_that_is_not_there_is_named(path):
    with pytest.raises(errors.InvalidInputError, match=f"model='{path}'"):
        user_functions.load("model", path)


def test_a_directory_that_is_no_admin_kit_is_named(tmp_path):
    with pytest.raises(errors.InvalidInputError, match=r"admin_kit=.*startup/fed_admin\.json"):
        nvflare_admin.NvflareAdmin(tmp_path).sites()


@pytest.mark.engine
def test_a_server_that_does_not_answer_is_named_with_its_address_and_the_fix(tmp_path):
    port = processes.free_port()
    kits = provisioning.provision(tmp_path / "p", provisioning.FederationSettings(sites=("a",)), port=port)
    with pytest.raises(errors.UnreachableError, match=f"localhost:{port} does not answer.*mlscale federated up"):
        nvflare_admin.NvflareAdmin(kits.admin).sites()
    with (
        socket.create_server(("127.0.0.1", port)),  # accepts and says nothing
        pytest.raises(errors.UnreachableError, match=f"localhost:{port} does not answer"),
    ):
        nvflare_admin.NvflareAdmin(kits.admin, login_timeout_s=1.0).sites()
    assert kits.root.parent.stat().st_mode & 0o777 == 0o700  # private keys


def test_what_a_users_function_raises_is_told_with_its_name_and_is_final():
    with pytest.raises(errors.FederatedRunFailedError, match=r"model='json:loads' raised JSONDecodeError") as failed:
        user_functions.call("model", "json:loads", "{")
    assert not failed.value.retryable
