"""Real certificates and start-up kits: what is made, what is kept, and what is found wrong with one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_mlscale import cli, errors
from airflow_mlscale.federated import roster
from airflow_mlscale.federated.adapters import environment, handshake, kits, nvflare_admin, participant, start_up_kit
from airflow_mlscale.runtime import processes

PORT = 18002
BOTH = roster.parse(
    {
        "server": {"host": "127.0.0.1", "port": PORT},
        "sites": ["a", {"name": "b", "labels": {"region": "eu"}, "server_address": "localhost:9000"}],
    }
)


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    return kits.provision(BOTH, tmp_path_factory.mktemp("federation") / "out")


@pytest.fixture
def copy(provisioned, tmp_path):
    """The federation's directory, to be changed; where it lies now is where the server's runs are."""
    shutil.copytree(provisioned.directory, tmp_path / "out")
    assert kits.provision(BOTH, tmp_path / "out").made == ("127.0.0.1",)
    return tmp_path / "out"


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_kit_is_made_for_everybody_and_only_its_owner_can_read_it(provisioned):
    everything = [provisioned.directory, *provisioned.directory.rglob("*")]

    assert provisioned.made == ("127.0.0.1", "a", "b", "admin@mlscale.local")
    assert {path for path in everything if stat.S_IMODE(path.stat().st_mode) & 0o077} == set()
    told = json.loads(provisioned.connection)["extra"]
    assert nvflare_admin.NvflareAdmin(Path(told["admin_kit"])).check_kit()["port"] == PORT
    assert Path(told["run_store"]).is_dir()


def test_the_connection_names_paths_and_no_secret(provisioned):
    assert "PRIVATE" not in provisioned.connection
    assert set(json.loads(provisioned.connection)["extra"]) == {"admin_kit", "run_store"}


def test_each_kit_is_for_its_own_way_to_the_server(provisioned):
    a, b = (start_up_kit.look(provisioned.kits / name, "site") for name in "ab")
    server = start_up_kit.look(provisioned.kits / "127.0.0.1", "server")

    assert (a.name, a.host, a.port, a.identity) == ("a", "127.0.0.1", PORT, "127.0.0.1")
    assert (b.host, b.port, b.identity) == ("localhost", 9000, "127.0.0.1")
    assert b.own["labels"] == {"region": "eu"}
    assert (server.name, server.port, server.organisation) == ("127.0.0.1", PORT, "mlscale")
    assert server.own["labels"] == {"b": {"region": "eu"}}
    resources = json.loads((b.directory / "local" / "resources.json").read_text())
    assert resources["labels"] == {"region": "eu"}
    assert resources["allow_log_streaming"] is False


def test_the_authority_outlives_the_certificates_and_its_key_is_in_no_kit(provisioned):
    state = json.loads((provisioned.directory / "authority" / "federation" / "state" / "cert.json").read_text())
    key = state["root_pri_key"]

    assert "PRIVATE KEY" in key
    assert [path for path in provisioned.kits.rglob("*") if path.is_file() and key.encode() in path.read_bytes()] == []
    kit = start_up_kit.look(provisioned.kits / "a", "site")
    assert timedelta(days=359) < kit.expires - datetime.now(UTC) < timedelta(days=361)


def test_provisioning_again_changes_nothing(copy):
    before = digests(copy)

    again = kits.provision(BOTH, copy)

    assert again.made == ()
    assert again.kept == ("127.0.0.1", "a", "b", "admin@mlscale.local")
    assert digests(copy) == before


def test_a_site_that_is_added_gets_a_kit_of_the_same_authority_and_the_others_keep_theirs(copy):
    before = digests(copy / "kits")
    more = replace(BOTH, sites=(*BOTH.sites, roster.SiteEntry(name="c")))

    done = kits.provision(more, copy)

    after = digests(copy / "kits")
    assert done.made == ("c",)
    assert {name: after[name] for name in before if name != "SHA256SUMS"} == {
        name: told for name, told in before.items() if name != "SHA256SUMS"
    }
    authority = [(copy / "kits" / name / "startup" / "rootCA.pem").read_bytes() for name in ("a", "c")]
    assert authority[0] == authority[1]
    assert start_up_kit.look(copy / "kits" / "c", "site").name == "c"


def test_new_labels_change_the_site_and_what_the_server_knows_but_no_certificate(copy):
    certificate = (copy / "kits" / "a" / "startup" / "client.crt").read_bytes()
    (copy / "kits" / "127.0.0.1" / "storage").mkdir()  # of a server that runs on this very kit
    labelled = replace(BOTH, sites=(replace(BOTH.sites[0], labels={"device": "gpu"}), BOTH.sites[1]))

    done = kits.provision(labelled, copy)

    assert done.made == ("127.0.0.1", "a")
    assert (copy / "kits" / "a" / "startup" / "client.crt").read_bytes() == certificate
    assert start_up_kit.look(copy / "kits" / "a", "site").own["labels"] == {"device": "gpu"}
    assert (copy / "kits" / "127.0.0.1" / "storage").is_dir()


def test_a_site_that_is_added_to_an_encrypted_federation_gets_the_common_key(tmp_path):
    tenseal = pytest.importorskip("tenseal")
    secret = replace(BOTH, encrypted=True)
    kits.provision(secret, tmp_path / "out")

    done = kits.provision(replace(secret, sites=(*BOTH.sites, roster.SiteEntry(name="c"))), tmp_path / "out")

    def context(name: str, role: str):
        return tenseal.context_from((done.kits / name / "startup" / f"{role}_context.tenseal").read_bytes())

    assert done.made == ("c",)
    sealed = tenseal.ckks_vector(context("a", "client"), [1.0, 2.0]).serialize()
    assert tenseal.ckks_vector_from(context("c", "client"), sealed).decrypt() == pytest.approx([1.0, 2.0], abs=1e-4)
    assert not context("127.0.0.1", "server").has_secret_key()


def test_a_certificate_is_renewed_on_demand(copy):
    before = {name: (copy / "kits" / name / "startup" / "client.crt").read_bytes() for name in "ab"}

    done = kits.provision(BOTH, copy, renew=["a"])

    after = {name: (copy / "kits" / name / "startup" / "client.crt").read_bytes() for name in "ab"}
    assert done.made == ("a",)
    assert after["b"] == before["b"]
    assert after["a"] != before["a"]
    with pytest.raises(errors.InvalidInputError, match=r"renew='z': use one of 127\.0\.0\.1, a, b"):
        kits.provision(BOTH, copy, renew=["z"])


def test_a_site_that_is_no_longer_listed_is_told_of_each_time(copy):
    fewer = replace(BOTH, sites=BOTH.sites[:1])

    assert kits.provision(fewer, copy).unlisted == ("b",)
    assert kits.provision(fewer, copy).unlisted == ("b",)


def test_another_federation_does_not_get_into_the_same_directory(copy):
    before = digests(copy)

    for other in (replace(BOTH, name="other"), replace(BOTH, server=roster.Server(host="elsewhere"))):
        with pytest.raises(errors.InvalidInputError, match="name another directory for another federation"):
            kits.provision(other, copy)

    assert digests(copy) == before


def test_what_was_cut_short_is_made_up_for(copy):
    shutil.rmtree(copy / "kits" / "b" / "startup")
    (copy / "kits" / "a.zip").unlink()

    assert kits.provision(BOTH, copy).made == ("a", "b")
    assert start_up_kit.look(copy / "kits" / "b", "site").name == "b"


def test_archives_carry_the_kits_and_their_checksums(provisioned, tmp_path):
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=provisioned.kits, check=True)

    unpacked = start_up_kit.unpack(provisioned.kits / "b.zip", tmp_path / "kits")

    assert start_up_kit.look(unpacked, "site").own["labels"] == {"region": "eu"}
    parts = {name for name in digests(provisioned.kits / "b") if name.startswith(("startup", "local"))}
    assert parts <= set(digests(unpacked))
    assert {oct(path.stat().st_mode & 0o077) for path in unpacked.rglob("*")} == {"0o0"}


def test_unpacking_the_same_archive_again_keeps_what_lies_in_it_and_another_one_replaces_the_kit(copy, tmp_path):
    unpacked = start_up_kit.unpack(copy / "kits" / "a.zip", tmp_path / "kits")
    (unpacked / "local" / "resources.json").write_text("{}")
    (unpacked / "log.txt").write_text("kept")

    start_up_kit.unpack(copy / "kits" / "a.zip", tmp_path / "kits")
    assert (unpacked / "local" / "resources.json").read_text() == "{}"

    kits.provision(BOTH, copy, renew=["a"])
    start_up_kit.unpack(copy / "kits" / "a.zip", tmp_path / "kits")
    assert (unpacked / "local" / "resources.json").read_text() != "{}"
    assert (unpacked / "log.txt").read_text() == "kept"


def test_a_damaged_or_foreign_archive_is_refused(copy, tmp_path):
    (copy / "kits" / "b.zip").write_bytes((copy / "kits" / "a.zip").read_bytes())
    with pytest.raises(errors.InvalidInputError, match="checksum differs"):
        start_up_kit.unpack(copy / "kits" / "b.zip", tmp_path / "kits")

    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(errors.InvalidInputError, match="cannot be read"):
        start_up_kit.unpack(tmp_path / "text.zip", tmp_path / "kits")

    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../outside", "x")
    with pytest.raises(errors.InvalidInputError, match="no kit of"):
        start_up_kit.unpack(tmp_path / "evil.zip", tmp_path / "kits")
    assert not (tmp_path / "outside").exists()


def test_a_kit_is_refused_for_another_role(provisioned, tmp_path):
    with pytest.raises(errors.InvalidInputError, match="is the kit of a federation's server, not a site's"):
        start_up_kit.look(provisioned.kits / "127.0.0.1", "site")
    with pytest.raises(errors.InvalidInputError, match="is the kit of a federation's admin, not a server's"):
        start_up_kit.look(provisioned.kits / "admin@mlscale.local", "server")
    with pytest.raises(errors.InvalidInputError, match="name a kit of 'mlscale federated provision'"):
        start_up_kit.look(tmp_path, "site")


def test_a_certificate_that_does_not_hold_now_is_refused(provisioned, caplog):
    kit = provisioned.kits / "a"
    now = datetime.now(UTC)

    with pytest.raises(errors.InvalidInputError, match=r"certificate of a expired on .*--renew a"):
        start_up_kit.look(kit, "site", now=now + timedelta(days=361))
    with pytest.raises(errors.InvalidInputError, match="is the clock right"):
        start_up_kit.look(kit, "site", now=now - timedelta(days=1))
    assert caplog.records == []
    start_up_kit.look(kit, "site", now=now + timedelta(days=340))
    assert "the certificate of a ends on" in caplog.text


def test_a_key_that_others_can_read_is_refused(copy):
    (copy / "kits" / "a" / "startup" / "client.key").chmod(0o640)

    with pytest.raises(errors.InvalidInputError, match=r"others can read client\.key \(mode 0640\); run: chmod -R go="):
        start_up_kit.look(copy / "kits" / "a", "site")


def test_a_key_or_an_authority_of_somebody_else_is_refused(copy, tmp_path):
    startup = copy / "kits" / "a" / "startup"
    shutil.copy(copy / "kits" / "b" / "startup" / "client.key", startup / "client.key")
    with pytest.raises(errors.InvalidInputError, match="do not belong together"):
        start_up_kit.look(copy / "kits" / "a", "site")

    other = kits.provision(replace(BOTH, name="other"), tmp_path / "other")
    shutil.copy(other.kits / "b" / "startup" / "rootCA.pem", copy / "kits" / "b" / "startup" / "rootCA.pem")
    with pytest.raises(errors.InvalidInputError, match="do not belong together"):
        start_up_kit.look(copy / "kits" / "b", "site")


def _listen(kit: Path, stem: str) -> tuple[socket.socket, threading.Thread]:
    """A TLS server with somebody's kit, for one handshake."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=kit / "startup" / "rootCA.pem")
    context.load_cert_chain(kit / "startup" / f"{stem}.crt", kit / "startup" / f"{stem}.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1)
        except OSError:
            connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return listener, thread


def _knock(kit: start_up_kit.Kit, port: int) -> str:
    return handshake.server_name(
        "127.0.0.1", port, authority=kit.file("rootCA.pem"), pair=kit.pair, kit=kit.directory, hint="start it"
    )


def test_a_handshake_tells_whose_server_answers(provisioned, tmp_path):
    kit = start_up_kit.look(provisioned.kits / "a", "site")
    listener, thread = _listen(provisioned.kits / "127.0.0.1", "server")
    with listener:
        assert _knock(kit, listener.getsockname()[1]) == "127.0.0.1"
        thread.join(10)

    other = kits.provision(replace(BOTH, name="other"), tmp_path / "other")
    listener, thread = _listen(other.kits / "127.0.0.1", "server")
    with listener, pytest.raises(errors.InvalidInputError, match="is of another federation"):
        _knock(kit, listener.getsockname()[1])
    thread.join(10)

    with pytest.raises(errors.UnreachableError, match="start it"):
        _knock(kit, processes.free_port())


def test_a_site_does_not_join_a_server_of_its_federation_that_is_not_the_one_of_its_kit(copy):
    """Certificates of one authority: only the certified name tells that a site's machine answers for the server."""
    listener, thread = _listen(copy / "kits" / "b", "client")
    kit = replace(start_up_kit.look(copy / "kits" / "a", "site"), port=listener.getsockname()[1])

    with listener, pytest.raises(errors.InvalidInputError, match=r"is 'b', and this kit is for '127\.0\.0\.1'"):
        participant.site(kit, participant.SiteOptions())
    thread.join(10)


def test_a_server_does_not_start_where_it_cannot_listen_or_keep_runs(copy):
    kit = start_up_kit.look(copy / "kits" / "127.0.0.1", "server")

    with pytest.raises(errors.InvalidInputError, match=r"bind='203\.0\.113\.1': is no address of this machine"):
        participant.server(kit, bind="203.0.113.1")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(errors.InvalidInputError, match="cannot be listened on at 127"),
    ):
        participant.server(replace(kit, port=taken.getsockname()[1]))
    gone = replace(kit, own={**kit.own, "run_store": str(copy / "nowhere")}, port=processes.free_port())
    with pytest.raises(errors.InvalidInputError, match="is no directory here"):
        participant.server(gone)


def test_one_kit_is_used_by_one_process(copy):
    kit = start_up_kit.look(copy / "kits" / "a", "site")
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(kit.directory / ".in-use")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        with pytest.raises(errors.InvalidInputError, match="another process on this machine is a already"):
            participant.site(kit, participant.SiteOptions())
    finally:
        other.communicate(b"\n", timeout=10)


def test_commands_look_at_a_kit_and_print_a_unit_that_systemd_understands(copy, capsys, tmp_path):
    assert cli.main(["federated", "site", "--kit", str(copy / "kits" / "a"), "--check"]) == 0
    assert f"server      127.0.0.1:{PORT}, certified as 127.0.0.1" in capsys.readouterr().out

    kit = copy / "kits" / "a"
    asked = ["--label", "region=eu", "--data-args", 'path="50% of it"', "--threads", "2", "--systemd"]
    assert cli.main(["federated", "site", "--kit", str(kit), *asked]) == 0
    unit = capsys.readouterr().out
    assert f"--kit {kit} --label region=eu" in unit
    assert "50%% of it" in unit
    assert f"ReadWritePaths={kit}" in unit
    assert "--systemd" not in unit.partition("[Service]")[2]
    if shutil.which("systemd-analyze"):
        path = tmp_path / "mlscale-federated-site-a.service"
        path.write_text(unit)
        checked = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
        assert (checked.returncode, [line for line in checked.stderr.splitlines() if str(path) in line]) == (0, [])


def test_commands_provision_and_refuse_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "sites.yaml").write_text("server: {host: 127.0.0.1}\nsites: [{name: a, labels: {country: no}}]\n")
    assert cli.main(["federated", "provision", str(tmp_path / "sites.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "sites[a].labels.country=False: put the value in quotes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # nothing half-done

    (tmp_path / "sites.yaml").write_text("server: {host: 127.0.0.1}\nsites: [a]\n")
    assert cli.main(["federated", "provision", str(tmp_path / "sites.yaml"), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert f"made        {tmp_path}/out/kits/a.zip" in told
    assert 'AIRFLOW_CONN_MLSCALE_FEDERATED=\'{"conn_type": "mlscale_federated"' in told
    assert "PRIVATE" not in told


@pytest.mark.parametrize(
    "bad", [["--data-args", "path"], ["--data-args", "a b=1"], ["--threads", "0"], ["--label", "x"]]
)
def test_bad_options_of_a_site_are_named(provisioned, capsys, bad):
    assert cli.main(["federated", "site", "--kit", str(provisioned.kits / "a"), *bad]) == 2
    assert f"mlscale: {bad[0].strip('-')}" in capsys.readouterr().err


def test_participants_tell_third_parties_nothing_and_see_nothing_of_airflow(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SECRET", "x")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")

    told = environment.of_participant(threads=3, data_args={"path": "/data", "rows": 5})

    assert "AIRFLOW_CONN_SECRET" not in told
    assert told["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert (told["DO_NOT_TRACK"], told[environment.THREADS]) == ("1", "3")
    monkeypatch.setattr(os, "environ", told)
    assert environment.site_data_args() == {"path": "/data", "rows": 5}
    assert environment.trainer_threads() == 3
