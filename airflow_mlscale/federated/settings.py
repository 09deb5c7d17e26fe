"""What a federated run is asked to do, and how a local federation is tuned.

Belongs here: frozen settings, their validation and their JSON form. Does not belong here: choices made
while a run is under way (`policy`) and anything that touches a file or a process (`adapters`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from airflow_mlscale.federated import checks, labels
from airflow_mlscale.federated.checks import check as _check
from airflow_mlscale.federated.checks import number as _number
from airflow_mlscale.federated.checks import whole as _whole
from airflow_mlscale.federated.combination import FEDAVG, MEAN, Aggregation, Privacy, ServerOptimiser
from airflow_mlscale.federated.model import Quality

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
FUNCTIONS = ("model", "client_data", "evaluation_data", "initial_weights")
"""Settings that name one."""
SCRIPT = re.compile(r"[^\0\n]+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
FORMATS = ("numpy", "pytorch", "keras_layer_weights")
"""In which NVFlare gives a client script arrays: NumPy's, PyTorch's tensors, or lists of a Keras model's layers."""
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


POLICIES: Mapping[str, str] = {
    "adaptive": "cohort, epochs per site, quorum and round deadline chosen each round",
    "over_selection": "a fixed cohort and fixed epochs; more are asked than are waited for",
    "fedavg": "a fixed cohort and fixed epochs; all of it is waited for",
    "oort": "a fixed cohort of the sites that are useful and fast (Lai et al., OSDI 2021)",
    "linear_rounds": "epochs from a line through the last two rounds, a target linear in rounds",
    "linear_network": "the same, a target linear in the bytes moved",
    "quadratic_rounds": "the same, a target quadratic in rounds",
    "quadratic_network": "the same, a target quadratic in the bytes moved",
}
"""Who plans the rounds; the last four are of Baresi, Quattrocchi and Rasi, SEAMS 2021."""
OBJECTIVES = ("cost", "time")
ON_INFEASIBLE = ("stop", "go_on")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may cost; no round is begun once it is spent."""

    node_seconds: float | None = None
    """Seconds that sites are held by rounds, summed over the sites."""
    gigabytes: float | None = None
    """Model and answers on the wire, 10⁹ bytes, summed over the sites."""

    def __post_init__(self) -> None:
        for name in ("node_seconds", "gigabytes"):
            if getattr(self, name) is not None:
                checks.within(getattr(self, name), f"budget.{name}", 0.0)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Budget:
        """The budget from its JSON object."""
        return cls(**values)


NO_BUDGET = Budget()


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One federated run. Every segment of the run uses the same settings."""

    run_id: str
    """Names the run and its directory: letters, digits, dots, underscores and hyphens."""
    model: str | None = None
    """``module:function`` that returns a compiled Keras model."""
    client_data: str | None = None
    """``module:function`` called on a site as ``(site_name, **data_args)``; returns its arrays ``(x, y)``, or
    ``((x, y), (x_val, y_val))``."""
    evaluation_data: str | None = None
    """``module:function`` called on the server as ``(**data_args)``; returns held-out arrays ``(x, y)``. None: the
    sites measure the models that they are sent, see `site_quality`."""
    client_script: str | None = None
    """In place of `client_data`: a program that trains by NVFlare's client API, as its file's path or ``module``."""
    client_script_args: tuple[str, ...] = ()
    """Words of its command line."""
    client_script_format: str = "numpy"
    """How its `FLModel.params` hold arrays, one of `FORMATS`."""
    initial_weights: str | None = None
    """In place of `model`, for a client script: ``module:function`` that returns arrays by name."""
    validation_split: float = 0.2
    """Part of a site's data that is not trained on but measured on, where the sites measure."""
    generated_modules: Mapping[str, str] = field(default_factory=dict)
    """Sources of modules that are in no file, by name; they travel with the job."""
    target: Quality
    """When the run has reached what it is for."""
    data_args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of both data functions, and of the model's as far as it takes them; JSON values."""
    extra_modules: tuple[str, ...] = ()
    """Modules that the functions' modules import and that travel with the job too."""
    deadline_at: float | None = None
    """Seconds since the epoch after which no round is started; None for none."""
    sites: tuple[str, ...] | None = None
    """Sites that take part, by name or by label (``region=eu``, see `labels`); None for every connected one."""
    max_rounds: int = 50
    """Complete rounds after which the run ends without the target."""
    min_nodes: int = 2
    """Quorum: a round with fewer answers does not count."""
    cohort: int | None = None
    """Answers that a round wants; None leaves it to the policy (those that choose none want every site)."""
    over_selection: float = 1.25
    """Sites asked ÷ answers wanted, so that slow or dead sites do not hold a round up. ≥ 1."""
    local_epochs: int | None = None
    """Passes over its own data that a site makes in a round, in the published policies' first two rounds alone; None
    leaves it to the policy (1 for those that choose none)."""
    batch_size: int = 32
    """Samples of one training step on a site."""
    proximal_mu: float = 0.0
    """FedProx: sites train on their loss + µ/2·‖w − w_t‖², which holds them near the model that they were sent
    (Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020); 0 for none."""
    aggregation: Aggregation = MEAN
    """Which answers are believed and how they become one."""
    server_optimiser: ServerOptimiser = FEDAVG
    """How far the model follows them."""
    privacy: Privacy | None = None
    """How much the models may tell about any one site; None promises nothing."""
    encrypted: bool = False
    """Sites encrypt their weights homomorphically (CKKS): the server sums what it cannot read, and a site reveals only
    the sum. Needs a federation that was provisioned with encryption, and TenSEAL on server and sites."""
    round_timeout_s: float = 60.0
    """After this long a round closes with the answers it has. The first round of a segment gets
    ``start_allowance_s`` more."""
    start_allowance_s: float = 120.0
    """Extra time of the first round of a segment: the sites import TensorFlow and read their data in it."""
    grace_fraction: float = 0.5
    """After the quorum, stragglers get this part of the time that the quorum took, at least one second."""
    max_failed_rounds: int = 3
    """Rounds without a quorum in a row after which the run fails."""
    policy: str = "adaptive"
    """Who plans the rounds, one of `POLICIES`."""
    objective: str = "cost"
    """What the adaptive policy saves while it keeps the limits: ``cost`` (the sites' time) or ``time``."""
    max_local_epochs: int = 10
    """Most local epochs that a policy may choose; says nothing to a policy that is given `local_epochs`."""
    late_answers: bool = True
    """Average answers that come after their round has closed into the round in which they come, with less weight the
    older they are. Never done under privacy, encryption or a robust rule, which count each site once per round."""
    budget: Budget = NO_BUDGET
    """What the run may cost."""
    stall_rounds: int | None = 40
    """Rounds without progress after which the run ends; None never ends it for that."""
    on_infeasible: str = "stop"
    """``stop`` once the learning curve shows that the target is out of reach within the limits, or ``go_on``."""
    seed: int = 0
    """Of the choice of sites and of the initial weights."""
    output_dir: str | None = None
    """Directory on the server for ``model.keras`` and ``saved_model/``; None uses the run directory."""
    heartbeat_s: float = 2.0
    """How often the controller shows that it lives."""

    def __post_init__(self) -> None:
        self._check_names()
        self._check_work()
        self._check_sites()
        for name in ("max_rounds", "max_local_epochs", "batch_size", "max_failed_rounds"):
            _whole(getattr(self, name), name, 1)
        for name in ("local_epochs", "stall_rounds"):
            if getattr(self, name) is not None:
                _whole(getattr(self, name), name, 1)
        checks.one_of(self.policy, "policy", POLICIES)
        published = self.policy.startswith(("linear_", "quadratic_"))  # it is their first rounds' alone, and they go on
        fix = f"must be at most max_local_epochs={self.max_local_epochs}, as in the rounds after the first two"
        _check(
            not published or (self.local_epochs or 1) <= self.max_local_epochs, "local_epochs", self.local_epochs, fix
        )
        checks.one_of(self.objective, "objective", OBJECTIVES)
        checks.one_of(self.on_infeasible, "on_infeasible", ON_INFEASIBLE)
        _check(isinstance(self.budget, Budget), "budget", self.budget, "use Budget(node_seconds=..., gigabytes=...)")
        for name, least in (("over_selection", 1.0), ("grace_fraction", 0.0), ("start_allowance_s", 0.0)):
            _number(getattr(self, name), name, least)
        _number(self.round_timeout_s, "round_timeout_s", 0.1)
        self._check_combination()
        _number(self.heartbeat_s, "heartbeat_s", 0.1)
        _check(self.heartbeat_s <= 10, "heartbeat_s", self.heartbeat_s, "must be at most 10 seconds")

    def _check_names(self) -> None:
        check_run_id(self.run_id)
        for name in FUNCTIONS:
            value = getattr(self, name)
            well_formed = value is None or (isinstance(value, str) and FUNCTION.fullmatch(value))
            _check(well_formed, name, value, "write 'module:function', for example 'flight_model:build'")
        _check(isinstance(self.target, Quality), "target", self.target, "use Quality('accuracy', 0.9)")
        _check(
            checks.is_json_object(self.data_args),
            "data_args",
            self.data_args,
            "must be a mapping of names to JSON values",
        )
        absolute = self.output_dir is None or (isinstance(self.output_dir, str) and self.output_dir.startswith("/"))
        _check(absolute, "output_dir", self.output_dir, "must be an absolute path on the federation's server")

    def _check_work(self) -> None:
        """Who trains and who measures: what is needed for it, and what does not go with it."""
        if self.client_script is None:
            fix = "write 'module:function', or name a client_script in place of it"
            _check(self.client_data is not None, "client_data", self.client_data, fix)
            fix = "write 'module:function'; the sites train what it returns"
            _check(self.model is not None, "model", self.model, fix)
            _absent(self, "initial_weights", "it is for a client_script; the model has its own")
            _absent(self, "client_script_args", "there is no client_script")
        else:
            self._check_script()
        checks.within(self.validation_split, "validation_split", 0.0, 1.0)
        if self.measured_by_sites:
            fix = (
                "privacy lets sites tell nothing of their data but protected weights; name a function of held-out data"
            )
            _check(self.privacy is None, "evaluation_data", self.evaluation_data, fix)
            fix = "must be at least 2 without evaluation_data: sites measure a model when they are sent it"
            _check(not isinstance(self.max_rounds, int) or self.max_rounds >= 2, "max_rounds", self.max_rounds, fix)
            averaging = getattr(self.server_optimiser, "averaging", 0.0)
            fix = "leave it out, or name evaluation_data: sites measure the models that they train, not an average"
            _check(averaging == 0.0, "server_optimiser.averaging", averaging, fix)

    def _check_script(self) -> None:
        well_formed = isinstance(self.client_script, str) and SCRIPT.fullmatch(self.client_script)
        _check(well_formed, "client_script", self.client_script, "write 'path/to/file.py' or 'package.module'")
        words = isinstance(self.client_script_args, tuple) and all(isinstance(w, str) for w in self.client_script_args)
        _check(words, "client_script_args", self.client_script_args, "write the words of a command line")
        checks.one_of(self.client_script_format, "client_script_format", FORMATS)
        _absent(self, "client_data", "the client_script reads its own data")
        if self.model is None:
            fix = "name a function that returns arrays by name, or a model"
            _check(self.initial_weights is not None, "initial_weights", self.initial_weights, fix)
            _absent(self, "evaluation_data", "without a Keras model the server cannot evaluate: the sites measure")
            keras = self.client_script_format == "keras_layer_weights"
            _check(not keras, "client_script_format", self.client_script_format, "needs a Keras model; use 'numpy'")
        else:
            _absent(self, "initial_weights", "the model has its own")
        _absent(self, "proximal_mu", "the client_script trains: add the term there")
        _absent(self, "encrypted", "only our own trainer packs weights so that they can be encrypted; use client_data")
        at = getattr(self.privacy, "noise_at", None)
        fix = "only our own trainer adds noise on a site; use 'server', or client_data in place of client_script"
        _check(at != "sites", "noise_at", at, fix)

    @property
    def measured_by_sites(self) -> bool:
        """Whether the sites measure the models, for want of held-out data on the server."""
        return self.evaluation_data is None

    def _check_sites(self) -> None:
        _whole(self.min_nodes, "min_nodes", 1)
        if self.cohort is not None:
            _whole(self.cohort, "cohort", 1)
            _check(self.cohort >= self.min_nodes, "cohort", self.cohort, f"must be at least min_nodes={self.min_nodes}")
        if self.sites is not None:
            selectors = [site for site in self.sites if labels.is_selector(site)]
            named = all(isinstance(site, str) and SITE.fullmatch(site) for site in self.sites if site not in selectors)
            fix = "list names of sites or labels such as 'region=eu', each once"
            _check(named and len(set(self.sites)) == len(self.sites), "sites", self.sites, fix)
            for selector in selectors:
                labels.parse("sites", selector)
            least = self.cohort or self.min_nodes
            enough = selectors or len(self.sites) >= least
            _check(enough, "sites", self.sites, f"name at least {least} (min_nodes, cohort)")

    @property
    def uses_late_answers(self) -> bool:
        """Whether late answers may be averaged in."""
        return self.late_answers and self.privacy is None and not self.encrypted and self.aggregation.rule == "mean"

    def _check_combination(self) -> None:
        _number(self.proximal_mu, "proximal_mu", 0.0)
        for name, kind in (("aggregation", Aggregation), ("server_optimiser", ServerOptimiser), ("privacy", Privacy)):
            value = getattr(self, name)
            good = isinstance(value, kind) or (name == "privacy" and value is None)
            _check(good, name, value, f"use {kind.__name__}(...)")
        rule, least = self.aggregation.rule, self.aggregation.least_answers
        _check(
            self.min_nodes >= least,
            "min_nodes",
            self.min_nodes,
            f"must be at least {least} for aggregation by {rule!r} that tolerates {self.aggregation.tolerated}",
        )
        if self.privacy is not None:
            _check(rule == "mean", "aggregation", rule, "privacy bounds what a site moves an average by; use 'mean'")
        _check(isinstance(self.encrypted, bool), "encrypted", self.encrypted, "must be True or False")
        if self.encrypted:
            _check(rule == "mean", "aggregation", rule, "encrypted weights can only be summed; use 'mean'")
            at = self.privacy.noise_at if self.privacy else "sites"
            _check(at == "sites", "noise_at", at, "the server never sees what it would clip; use 'sites'")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        ours = {"data_args": dict(self.data_args), "generated_modules": dict(self.generated_modules)}
        return {**asdict(self), **ours, "target": self.target.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunSettings:
        """Settings from their JSON object; fields of a later version are ignored."""
        known = {f.name for f in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        kept["target"] = Quality.from_json(values["target"])
        kinds: dict[str, Any] = {
            "aggregation": Aggregation, "server_optimiser": ServerOptimiser, "privacy": Privacy, "budget": Budget,
        }  # fmt: skip
        for name, kind in kinds.items():
            if kept.get(name) is not None:
                kept[name] = kind.from_json(kept[name])
        for name in ("extra_modules", "client_script_args"):
            kept[name] = tuple(values.get(name, ()))
        kept["sites"] = None if values.get("sites") is None else tuple(values["sites"])
        return cls(**kept)


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """A local federation: a server and one process group per site on loopback."""

    sites: tuple[str, ...]
    """Names of the sites; each trains on its own data."""
    start_timeout_s: float = 120.0
    """How long server and sites may take to be ready."""
    task_interval_s: float = 0.2
    """How often a site without work asks the server for some."""
    site_heartbeat_s: float = 2.0
    """How often a site shows the server that it lives."""
    site_timeout_s: float = 20.0
    """A site silent for this long is no longer offered work of new segments."""
    trainer_threads: int = 1
    """TensorFlow threads of each site's trainer."""
    encrypted: bool = False
    """Give the sites a common secret key, for runs whose weights the server must not read (`RunSettings.encrypted`)."""

    def __post_init__(self) -> None:
        _check(len(self.sites) > 0, "sites", self.sites, "name at least one site")
        for site in self.sites:
            check_site(site, "sites")
        _check(len({s.lower() for s in self.sites}) == len(self.sites), "sites", self.sites, "name each site once")
        _number(self.start_timeout_s, "start_timeout_s", 1.0)
        for name in ("task_interval_s", "site_heartbeat_s", "site_timeout_s"):
            _number(getattr(self, name), name, 0.1)
        _whole(self.trainer_threads, "trainer_threads", 1)


RESERVED_SITES = frozenset({"server", "localhost", "admin", "all"})
TRUTH_VALUES = frozenset({"t", "true", "y", "yes", "f", "false", "n", "no"})


def check_site(name: object, field: str) -> None:
    """Refuse what no site can be called; NVFlare takes some words for truth values and numbers.

    Raises:
        InvalidInputError: names the field, the name and what is wrong with it.
    """
    good = isinstance(name, str) and SITE.fullmatch(name)
    _check(good, field, name, "use letters, digits, '_' and '-', the first a letter or digit, at most 63")
    word = str(name).lower()
    _check(word not in RESERVED_SITES, field, name, "this name is taken by the federation itself")
    _check(
        word not in TRUTH_VALUES and not _is_number(word),
        field,
        name,
        "NVFlare reads this as a value; use a longer name",
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_run_id(run_id: object) -> str:
    """The id itself: it names a run and its directory.

    Raises:
        InvalidInputError: it does not.
    """
    good = isinstance(run_id, str) and RUN_ID.fullmatch(run_id)
    _check(good, "run_id", run_id, "use letters, digits, '.', '_' and '-', the first a letter or digit, at most 100")
    return str(run_id)


def _absent(run: RunSettings, name: str, why: str) -> None:
    _check(not getattr(run, name), name, getattr(run, name), f"leave it out: {why}")
