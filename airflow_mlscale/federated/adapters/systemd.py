"""The systemd unit of a site or of the server: text, pure."""

from __future__ import annotations

from collections.abc import Sequence

UNIT = """\
# {heading}
#   mlscale federated {role} --kit KIT --systemd | sudo tee /etc/systemd/system/{unit}.service
#   sudo systemctl daemon-reload && sudo systemctl enable --now {unit}
[Unit]
Description=Federated learning: {role} {name} (airflow-provider-mlscale)
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
ExecStart={command}
Restart=on-failure
RestartSec=10
KillMode=mixed
TimeoutStopSec=30
WorkingDirectory={directory}
Environment={home}
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictSUIDSGID=yes
LockPersonality=yes
ReadWritePaths={writable}

[Install]
WantedBy=multi-user.target
"""


def name(role: str, participant: str) -> str:
    """Of the unit, without ``.service``."""
    return f"mlscale-federated-{role}" + (f"-{participant}" if role == "site" else "")


def unit(
    role: str, participant: str, *, command: Sequence[str], directory: str, user: str, writable: Sequence[str] = ()
) -> str:
    """The unit's text.

    Args:
        role: ``site`` or ``server``.
        participant: name in the certificate.
        command: absolute path of the program and its arguments.
        directory: of the kit, which NVFlare writes to.
        user: who runs it and owns the kit.
        writable: further directories that it writes to.
    """
    return UNIT.format(
        heading=f"{role.capitalize()} {participant}",
        role=role,
        name=participant,
        unit=name(role, participant),
        user=user,
        command=" ".join(_quoted(word) for word in command),
        directory=_escaped(directory),
        home=_quoted(f"HOME={directory}"),
        writable=" ".join(_quoted(path) for path in (directory, *writable)),
    )


def _quoted(word: str) -> str:
    escaped = _escaped(word).replace("$", "$$")
    plain = escaped and not any(sign in escaped for sign in " \t'\";")
    return escaped if plain else '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    """systemd reads ``%`` as the beginning of a specifier."""
    return text.replace("%", "%%")
