"""Averages of ciphertexts, with TenSEAL and NVFlare's own filters and serialisation, but without processes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import model, policy
from airflow_mlscale.federated.adapters import job_folder, wire
from tests.fakes import federated

ts = pytest.importorskip("tenseal")

SENT = [np.zeros((2, 3), "float32"), np.zeros((), "float32"), np.zeros(1, "int64")]


def weights(value: float, steps: int = 0) -> list:
    return [np.full((2, 3), value, "float32"), np.array(-value, "float32"), np.array([steps])]


@pytest.fixture(scope="module")
def key():
    """As NVFlare's provisioning makes it."""
    made = ts.context(ts.SCHEME_TYPE.CKKS, 8192, -1, [60, 40, 40], ts.ENCRYPTION_TYPE.SYMMETRIC)
    made.generate_relin_keys()
    made.global_scale = 2**40
    return made


class Ciphers:
    """Sites that answer with ciphertexts, and decrypt what they are asked to unless they are dead."""

    def __init__(self, key, answers, dead=()):
        from nvflare.apis.fl_context import FLContext
        from nvflare.app_opt.he.model_decryptor import HEModelDecryptor

        self.answers, self.dead, self.asked = answers, dead, []
        self._key, self._context, self._filter = key, FLContext(), HEModelDecryptor()
        self._filter.tenseal_context = key
        self.told_to_stop = False

    def names(self):
        return [answer.site for answer in self.answers]

    def train(self, plan, sent):
        return self.answers

    def late(self):
        return self.answers[:1]

    def stopped(self):
        return self.told_to_stop

    def ask(self, task_name, question, targets, *, read, left_s):
        from nvflare.fuel.utils import fobs

        from airflow_mlscale.federated.adapters import encryption

        assert task_name == wire.REVEAL
        self.asked.append(tuple(targets))
        heard = []
        for site in targets:
            if site in self.dead:
                continue
            arrived = fobs.loads(fobs.dumps(copy.deepcopy(question)))  # NVFlare copies what it broadcasts
            shown = encryption.Revealer().execute(
                task_name, self._filter.process(arrived, self._context), self._context, None
            )
            heard.append((1.0, read(site, shown)))
        assert (left_s(heard, 1.0) == 0) == bool(heard)
        return heard


def answer(key, site: str, value: float, samples: int = 1, steps: int = 0, **changes) -> model.SiteAnswer:
    """As it arrives on the server: a ciphertext whose context has no secret key."""
    from nvflare.fuel.utils import fobs

    from airflow_mlscale.federated.adapters import encryption

    encryption.register()
    sent = ts.ckks_vector(key, wire.flatten(weights(value, steps)))
    arrived = fobs.loads(fobs.dumps(sent))
    return model.SiteAnswer(**{"site": site, "samples": samples, "weights": [arrived], **changes})


def plan(quorum: int = 2) -> policy.RoundPlan:
    return policy.RoundPlan(
        number=1,
        asked=("a", "b", "c"),
        enough=3,
        quorum=quorum,
        timeout_s=9,
        grace_fraction=0,
        local_epochs={},
        batch_size=1,
    )


def revealed(ciphers, *, equal=False):
    from airflow_mlscale.federated.adapters import encryption

    return encryption.RevealedSites(ciphers, equal=equal).train(plan(), SENT)


def test_every_answer_carries_the_average_and_nothing_else(key):
    failed = model.SiteAnswer(site="c", error="no data")
    seen = revealed(Ciphers(key, [answer(key, "a", 0.0, 1, 2), answer(key, "b", 4.0, 3, 7), failed]))
    assert [each.site for each in seen] == ["a", "b", "c"]
    for each in seen[:2]:  # (1·0 + 3·4) / 4 = 3, −3, and (1·2 + 3·7) / 4 = 5.75
        assert each.weights[0] == pytest.approx(np.full((2, 3), 3.0), abs=1e-5)
        assert float(each.weights[1]) == pytest.approx(-3.0, abs=1e-5)
        assert each.weights[2].tolist() == [6]
        assert [array.dtype for array in each.weights] == [array.dtype for array in SENT]
    assert seen[2] is failed


def test_under_privacy_each_site_counts_the_same(key):
    seen = revealed(Ciphers(key, [answer(key, "a", 0.0, 1), answer(key, "b", 4.0, 3)]), equal=True)
    assert seen[0].weights[0][0][0] == pytest.approx(2.0, abs=1e-5)


def test_the_server_cannot_read_what_it_sums(key):
    from airflow_mlscale.federated.adapters import encryption

    arrived = answer(key, "a", 1.0)
    for cipher in (arrived.weights[0], encryption.average([arrived, answer(key, "b", 2.0)], equal=True)):
        assert not cipher.context().is_private()
        with pytest.raises(ValueError, match="doesn't hold a secret_key"):
            cipher.decrypt()


def test_a_dead_revealer_is_covered_by_the_next(key):
    answers = [answer(key, site, 1.0) for site in "abc"]
    ciphers = Ciphers(key, answers, dead=("a", "b"))
    assert revealed(ciphers)[0].weights[0][0][0] == pytest.approx(1.0, abs=1e-5)
    assert ciphers.asked == [("a", "b"), ("c",)]
    with pytest.raises(errors.TransientError, match=r"none of a, b, c decrypted the round's average"):
        revealed(Ciphers(key, answers, dead="abc"))


def test_late_answers_are_heard_but_not_read(key):
    from airflow_mlscale.federated.adapters import encryption

    (late,) = encryption.RevealedSites(Ciphers(key, [answer(key, "a", 1.0)]), equal=False).late()
    assert (late.site, late.weights) == ("a", ())


def test_a_run_that_is_told_to_stop_does_not_fail_for_want_of_a_revealer(key):
    ciphers = Ciphers(key, [answer(key, site, 1.0) for site in "abc"], dead="abc")
    ciphers.told_to_stop = True
    assert {each.error for each in revealed(ciphers)} == {"the run was told to stop"}
    assert ciphers.asked == [("a", "b")]


def test_without_a_quorum_nothing_is_revealed(key):
    ciphers = Ciphers(key, [answer(key, "a", 1.0), model.SiteAnswer(site="b", error="no data")])
    seen = revealed(ciphers)
    assert ciphers.asked == []
    assert [array.tolist() for array in seen[0].weights] == [array.tolist() for array in SENT]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"samples": 0}, "sent a bad sample count 0"),
        ({"weights": []}, "sent weights that are not encrypted"),
        ({"weights": weights(1.0)}, "sent weights that are not encrypted"),
        ({"weights": [wire.flatten(weights(1.0))]}, "sent weights that are not encrypted"),
    ],
)
def test_what_is_no_ciphertext_is_not_summed(key, changes, why):
    from airflow_mlscale.federated.adapters import encryption

    good = answer(key, "a", 1.0)
    assert encryption.fault(good, SENT) is None
    assert encryption.fault(good, SENT[:1]) == "sent 8 encrypted numbers for 6"
    assert encryption.fault(answer(key, "a", 1.0, **changes), SENT) == why


def test_flat_weights_come_back_in_their_shapes_and_types():
    back = wire.unflatten(wire.flatten(weights(2.5, 7)), SENT)
    assert [array.tolist() for array in back] == [[[2.5] * 3] * 2, -2.5, [7]]
    assert [array.dtype for array in back] == [array.dtype for array in SENT]
    with pytest.raises(ValueError, match="numbers for 8"):
        wire.unflatten(np.zeros(9), SENT)


def test_encrypted_runs_refuse_what_needs_to_look_into_answers():
    from airflow_mlscale.federated import combination

    for changes in (
        {"aggregation": combination.Aggregation(rule="median"), "min_nodes": 3},
        {"privacy": combination.Privacy(clip_norm=1.0, noise_multiplier=1.0)},
    ):
        with pytest.raises(errors.InvalidInputError, match=r"use '(mean|sites)'"):
            federated.settings(encrypted=True, **changes)
    at_sites = combination.Privacy(clip_norm=1.0, noise_multiplier=1.0, noise_at="sites")
    assert federated.settings(encrypted=True, privacy=at_sites).encrypted


def test_a_job_that_encrypts_lets_no_weights_leave_a_site_as_they_are(tmp_path):
    def client(**changes):
        run = federated.settings(model="json:x", client_data="json:x", evaluation_data="json:x", **changes)
        folder = job_folder.render(run, segment=1, run_dir=tmp_path, folder=tmp_path / "job")
        return json.loads((folder / "app" / "config" / "config_fed_client.json").read_text())

    config = client(encrypted=True)
    (encryptor,) = config["task_result_filters"]
    assert encryptor["tasks"] == [wire.TASK]
    assert encryptor["filters"][0]["path"].endswith("HEModelEncryptor")
    (decryptor,) = config["task_data_filters"]
    assert decryptor["tasks"] == [wire.REVEAL]
    assert [each["tasks"] for each in config["executors"]] == [[wire.REVEAL], [wire.TASK]]
    for each in ("task_result_filters", "task_data_filters"):
        assert client()[each] == []
