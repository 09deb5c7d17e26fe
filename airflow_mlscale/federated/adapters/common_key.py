"""The sites' common secret key, kept with the certificate authority: a site that is added later gets the same one.

Loaded only by NVFlare's provisioning, of federations that encrypt.
"""

from __future__ import annotations

from pathlib import Path

# Instantiated by NVFlare, and TenSEAL behind it is there whenever this module is loaded.
from nvflare.lighter.impl.he import HEBuilder  # noqa: TID253
from nvflare.lighter.spec import Project, ProvisionContext  # noqa: TID253


class KeptHEBuilder(HEBuilder):
    """NVFlare's builder makes a new key each time, with which nobody could read what the earlier sites encrypt."""

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Take the key that is kept, or make and keep one."""
        kept = Path(ctx.get_state_dir()) / "context.tenseal"
        if kept.exists():
            import tenseal

            self._context = tenseal.context_from(kept.read_bytes())
            return
        super().initialize(project, ctx)
        partial = kept.with_suffix(".partial")
        partial.touch(mode=0o600)
        partial.write_bytes(self.get_serialized_context(is_client=True))
        partial.replace(kept)
