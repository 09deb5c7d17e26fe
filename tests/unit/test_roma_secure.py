"""Who comes in over HTTP and gRPC, and how: real sockets over fake workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import authority, settings
from airflow_mlscale.roma.adapters import client, tls, tokens, v2_wire
from tests.fakes import certificates, roma_served

INFER = "/v2/models/m/infer"
V2 = "/inference.GRPCInferenceService/"


def bearing(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def given(path: Path) -> dict[str, str]:
    """A token of each scope."""
    return {scope: tokens.add(path, scope, frozenset({scope})) for scope in authority.SCOPES}


async def test_scopes_over_http(path: Path, given: dict[str, str]) -> None:
    asked: dict[tuple[str, str], set[str]] = {
        ("POST", INFER): {"infer", "admin"},
        ("GET", "/v2/models/m"): {"read", "infer", "admin"},
        ("GET", "/v2/mlscale/models"): {"read", "admin"},
        ("GET", "/metrics"): {"read", "admin"},
        ("POST", "/v2/repository/models/m/load"): {"admin"},
    }
    async with roma_served.serving(tokens_path=path) as served:
        for (method, where), scopes in asked.items():
            for scope, token in given.items():
                answer = await served.http.request(method, where, content=b"{}", headers=bearing(token))
                assert (answer.status_code == 403) == (scope not in scopes), (method, where, scope, answer.text)
            for headers in ({}, bearing("wrong"), {"authorization": f"Basic {given['admin']}"}, bearing("\x80")):
                sent = {key: value.encode("latin-1") for key, value in headers.items()}
                answer = await served.http.request(method, where, content=b"{}", headers=sent)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        assert (await served.http.get("/v2/health/live")).status_code == 200


async def test_scopes_over_grpc(path: Path, given: dict[str, str]) -> None:
    async with roma_served.serving(tokens_path=path) as served:
        infer = v2_wire.ModelInferRequest(model_name="m").SerializeToString()
        for method, body, scopes in (
            ("ModelInfer", infer, {"infer", "admin"}),
            ("ServerMetadata", b"", {"read", "infer", "admin"}),
            ("RepositoryModelUnload", b"", {"admin"}),
        ):
            for scope, token in given.items():
                code = await _code(served, method, body, token)
                assert (code == grpc.StatusCode.PERMISSION_DENIED) == (scope not in scopes), (method, scope, code)
            assert await _code(served, method, body, "wrong") == grpc.StatusCode.UNAUTHENTICATED


async def _code(served: roma_served.Served, method: str, body: bytes, token: str) -> grpc.StatusCode:
    try:
        await served.channel.unary_unary(V2 + method)(body, timeout=10, metadata=[*bearing(token).items()])
    except grpc.aio.AioRpcError as exc:
        return exc.code()
    return grpc.StatusCode.OK


async def test_revoked_tokens_are_refused_once_the_file_was_read_again(path: Path, given: dict[str, str]) -> None:
    async with roma_served.serving(tokens_path=path) as served:
        headers = bearing(given["read"])
        assert (await served.http.get("/metrics", headers=headers)).status_code == 200
        tokens.remove(path, "read")
        assert served.guard.file is not None
        served.guard.file.refresh()
        assert (await served.http.get("/metrics", headers=headers)).status_code == 401


async def test_the_single_token_and_those_of_the_file_both_hold(path: Path, given: dict[str, str]) -> None:
    async with roma_served.serving(tokens_path=path, token="of-old") as served:
        for token in ("of-old", given["admin"]):
            assert (await served.http.get("/metrics", headers=bearing(token))).status_code == 200


async def test_rates_of_tokens_and_addresses(path: Path) -> None:
    slow = tokens.add(path, "slow", frozenset({"read"}), rate_per_s=0.01)
    quick = tokens.add(path, "quick", frozenset({"read"}), rate_per_s=1e6)
    async with roma_served.serving(tokens_path=path, rate_per_s=0.01) as served:
        assert (await served.http.get("/v2", headers=bearing(slow))).status_code == 200
        answer = await served.http.get("/v2", headers=bearing(slow))
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        for _ in range(10):
            assert (await served.http.get("/v2", headers=bearing(quick))).status_code == 200
        statuses = [(await served.http.get("/v2", headers=bearing("guess"))).status_code for _ in range(3)]
        assert statuses == [401, 429, 429]
        for _ in range(3):
            assert (await served.http.get("/v2/health/live")).status_code == 200
        call = served.channel.unary_unary(V2 + "ServerMetadata")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", timeout=10, metadata=[*bearing(slow).items()])
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "retry-after" in dict(refused.value.trailing_metadata() or ())


async def test_rates_without_tokens() -> None:
    async with roma_served.serving(rate_per_s=0.001) as served:
        statuses = [(await served.http.get("/v2")).status_code for _ in range(3)]
    assert statuses == [200, 429, 429]


@pytest.fixture
def issuer(tmp_path: Path) -> certificates.Authority:
    return certificates.Authority(tmp_path / "ours")


def tls_settings(issuer: certificates.Authority, **more: Any) -> settings.TlsSettings:
    certificate, key = issuer.issue("server")
    return settings.TlsSettings(certificate=certificate, key=key, **more)


@contextlib.asynccontextmanager
async def secured(config: settings.TlsSettings, **more: Any) -> AsyncIterator[tuple[roma_served.Served, str]]:
    async with roma_served.serving(tls=config, **more) as served:
        yield served, f"https://localhost:{served.port}"


async def test_https(issuer: certificates.Authority, tmp_path: Path) -> None:
    async with secured(tls_settings(issuer)) as (served, url):
        good = client.trust(ca_file=issuer.path)
        async with httpx.AsyncClient(verify=good, trust_env=False) as http:
            assert (await http.get(f"{url}/v2")).status_code == 200
        foreign = certificates.Authority(tmp_path / "theirs")
        for wrong in (client.trust(ca_file=foreign.path), client.trust()):
            async with httpx.AsyncClient(verify=wrong, trust_env=False) as http:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await http.get(f"{url}/v2")
        async with httpx.AsyncClient(verify=client.trust(verify=False), trust_env=False) as http:
            assert (await http.get(f"{url}/v2")).status_code == 200
        assert b"HTTP/" not in await served.raw(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n")


async def test_our_client_over_https(issuer: certificates.Authority) -> None:
    config = tls_settings(issuer)
    async with secured(config, token="secret") as (_, url):
        pinned = client.pinned(config.certificate)
        for trusted in (client.trust(ca_file=issuer.path), pinned):
            with client.RomaClient(url, token="secret", trusted=trusted) as roma:
                assert [one["name"] for one in await asyncio.to_thread(roma.models)] == ["m"]
        with client.RomaClient(url, token="secret") as roma, pytest.raises(errors.UnreachableError, match="ca_file"):
            await asyncio.to_thread(roma.models)
        async with client.AsyncRomaClient(url, token="secret", trusted=pinned) as roma:
            assert (await roma.status("m"))["name"] == "m"


def test_another_certificate_of_the_same_authority_is_not_the_pinned_one(issuer: certificates.Authority) -> None:
    ours, (theirs, key) = issuer.issue("ours")[0], issuer.issue("theirs")
    server = tls.context(settings.TlsSettings(certificate=theirs, key=key))
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(server, client.pinned(ours))
    _shake_hands(server, client.pinned(theirs))


def _shake_hands(server: ssl.SSLContext, asking: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        asking.wrap_bio(to_client, to_server, server_hostname="elsewhere"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


async def test_grpc_over_tls(issuer: certificates.Authority) -> None:
    async with secured(tls_settings(issuer)) as (served, _):
        assert served.grpc_port
        trusted = grpc.ssl_channel_credentials(issuer.path.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{served.grpc_port}", trusted) as channel:
            assert await channel.unary_unary(V2 + "ServerLive")(b"", timeout=10)
        async with grpc.aio.insecure_channel(f"localhost:{served.grpc_port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(V2 + "ServerLive")(b"", timeout=10)


async def test_clients_show_their_certificates_where_that_is_asked_for(
    issuer: certificates.Authority, tmp_path: Path
) -> None:
    theirs = certificates.Authority(tmp_path / "clients")
    certificate, key = theirs.issue("someone")
    foreign_certificate, foreign_key = issuer.issue("nobody")
    async with secured(tls_settings(issuer, client_ca=theirs.path)) as (served, url):
        good = client.trust(ca_file=issuer.path, client_cert=certificate, client_key=key)
        async with httpx.AsyncClient(verify=good, trust_env=False) as http:
            assert (await http.get(f"{url}/v2")).status_code == 200
        foreign = client.trust(ca_file=issuer.path, client_cert=foreign_certificate, client_key=foreign_key)
        for bad in (client.trust(ca_file=issuer.path), foreign):
            async with httpx.AsyncClient(verify=bad, trust_env=False) as http:
                with pytest.raises(httpx.TransportError):
                    await http.get(f"{url}/v2")
        roots = issuer.path.read_bytes()
        shown = grpc.ssl_channel_credentials(roots, key.read_bytes(), certificate.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{served.grpc_port}", shown) as channel:
            assert await channel.unary_unary(V2 + "ServerLive")(b"", timeout=10)
        async with grpc.aio.secure_channel(
            f"localhost:{served.grpc_port}", grpc.ssl_channel_credentials(roots)
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(V2 + "ServerLive")(b"", timeout=10)


async def test_new_certificates_are_taken_and_half_written_ones_are_not(issuer: certificates.Authority) -> None:
    config = tls_settings(issuer)
    async with secured(config) as (served, _):
        assert served.certificates is not None
        first = await _shown(served.port), await _shown(served.grpc_port)
        assert first[0] == first[1]
        key = config.key.read_bytes()
        issuer.issue("server")
        new_key = config.key.read_bytes()
        config.key.write_bytes(key)  # the certificate is there, its key not yet
        served.certificates.refresh()
        assert (await _shown(served.port), await _shown(served.grpc_port)) == first
        config.key.write_bytes(new_key)
        served.certificates.refresh()
        later = await _shown(served.port), await _shown(served.grpc_port)
        assert later[0] == later[1] != first[0]


async def _shown(port: int) -> str:
    """The certificate that a port shows."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=10)


async def test_a_handshake_that_never_comes_ends_the_connection(issuer: certificates.Authority) -> None:
    async with secured(tls_settings(issuer), header_timeout_s=0.1) as (served, _):
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01", b"nonsense" * 100):
            await served.raw(sent)  # returns once the other end has closed
        with socket.create_connection(("127.0.0.1", served.grpc_port), timeout=10) as half:
            assert await asyncio.to_thread(_until_closed, half)


async def test_one_address_does_not_take_all_connections(issuer: certificates.Authority) -> None:
    exposed = {"host": "0.0.0.0", "token": "secret", "max_connections_per_address": 3}
    async with secured(tls_settings(issuer), **exposed) as (served, _):
        trusted = client.trust(ca_file=issuer.path)

        async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", served.port, ssl=trusted, server_hostname="localhost")

        request = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
        held = [await opened() for _ in range(3)]
        with contextlib.suppress(ConnectionError):
            reader, writer = await opened()
            writer.write(request)
            assert await asyncio.wait_for(reader.read(), 10) == b""
        for reader, writer in held:  # those that were there before go on
            writer.write(request)
            assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
        reader, writer = await opened()
        writer.write(request)
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
        writer.close()


def _until_closed(connection: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        while connection.recv(4096):
            pass
    return True


@pytest.mark.parametrize("broken", ["certificate", "key", "client_ca"])
def test_files_that_hold_no_certificates_are_refused(
    issuer: certificates.Authority, tmp_path: Path, broken: str
) -> None:
    certificate, key = issuer.issue("server")
    files = {"certificate": certificate, "key": key, "client_ca": issuer.path}
    other_key = issuer.issue("other")[1]
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("hunter2")
    for wrong in (nonsense, tmp_path / "none", other_key):
        with pytest.raises(errors.InvalidInputError) as refused:
            tls.Certificates(settings.TlsSettings(**{**files, broken: wrong}))
        assert "tls_" in refused.value.field
        assert "hunter2" not in str(refused.value)


def test_clients_tell_which_file_is_wrong(tmp_path: Path, issuer: certificates.Authority) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text(json.dumps({}))
    for field, files in (("ca_file", {"ca_file": nonsense}), ("client_cert", {"client_cert": nonsense})):
        with pytest.raises(errors.InvalidInputError) as refused:
            client.trust(**files)  # type: ignore[arg-type]
        assert refused.value.field == field
