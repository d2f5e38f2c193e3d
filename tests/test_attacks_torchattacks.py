"""The door to torchattacks: equal numbers where both can compute them, and no side effects."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torchattacks.attack import Attack as Foreign

from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.build import build_attack
from sanrobust.attacks.pgd import targeted_pgd
from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.targets import parse_rule
from sanrobust.attacks.torchattacks_adapter import adapt, attack_names
from sanrobust.errors import ModelError, ProtocolError, UnknownNameError, UsageError

RANDOM = parse_rule("random")
CLASSES = 6
# Options that make the slow attacks quick enough for a test.
QUICK = {
    "CW": {"steps": "5"}, "EADEN": {"max_iterations": "10", "binary_search_steps": "2"},
    "EADL1": {"max_iterations": "10", "binary_search_steps": "2"}, "JSMA": {"gamma": "0.02"},
    "Square": {"n_queries": "20"}, "SPSA": {"nb_sample": "4"}, "DeepFool": {"steps": "5"},
    "OnePixel": {"steps": "2", "popsize": "4"}, "Pixle": {"restarts": "2", "max_iterations": "2"},
    "SparseFool": {"steps": "2"}, "AutoAttack": {"eps": "1.0"}, "FAB": {"steps": "3"},
    "EOTPGD": {"steps": "3"}, "VMIFGSM": {"steps": "3"}, "VNIFGSM": {"steps": "3"},
}
# Options that make the weak attacks strong enough to show a direction.
MORE = {"Square": {"n_queries": "200"}, "SPSA": {"nb_iter": "10", "nb_sample": "32"},
        "JSMA": {"gamma": "0.1"}, "Jitter": {"scale": "1"}, "CW": {"c": "100", "steps": "50"},
        "EADEN": {"max_iterations": "100", "initial_const": "10"},
        "EADL1": {"max_iterations": "100", "initial_const": "10"}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net() -> nn.Sequential:
    """A seeded conv net in eval mode whose logits are spread enough to be attacked."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(),
                        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, CLASSES)).eval()
    linear = net[-1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.mul_(10)
    return net


def batch(net: nn.Module, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """8-bit images, the classes the net gives them, and ids."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (size, 3, 12, 12), generator=generator).float() / 255
    return images, net(images).argmax(1), [f"image-{number}" for number in range(size)]


def some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


@pytest.mark.parametrize("budget", TABLE10, ids=str)
def test_pgd_through_the_adapter_is_our_pgd(budget: Budget) -> None:
    net = small_net()
    images, labels, ids = batch(net, 16)
    ours = targeted_pgd(net, images, labels, ids, budgets=[budget], targets=RANDOM, seed=4)[0]
    options = {"eps": f"{budget.eps:g}/255", "alpha": f"{budget.step:g}/255",
               "steps": str(budget.iters), "random_start": "false"}
    theirs = adapt("PGD", list(options.items()))(net, images, labels, ids, targets=RANDOM, seed=4)
    assert torch.equal(some(theirs.targets), some(ours.targets))
    # Float rounding off the 8-bit grid may turn the sign of a gradient that is nearly zero.
    differing = (theirs.adversarial * 255).round() != (ours.adversarial * 255).round()
    assert differing.float().mean() <= 1e-4
    assert torch.equal(some(theirs.hit), some(ours.hit))
    assert theirs.eps == budget.eps and theirs.budget is None
    torch.testing.assert_close(theirs.linf, ours.linf, rtol=0, atol=3e-4)


@pytest.mark.parametrize("name", attack_names())
def test_every_attack_runs_and_repeats_itself_whatever_the_batch(name: str) -> None:
    net = small_net()
    images, labels, ids = batch(net, 3)
    attack = adapt(name, list(QUICK.get(name, {}).items()))
    whole = attack(net, images, labels, ids, targets=RANDOM)
    last = attack(net, images[2:], labels[2:], ids[2:], targets=RANDOM)
    assert torch.equal(last.adversarial, whole.adversarial[2:])
    assert (whole.targets is None) == (whole.hit is None) == (not attack.targeted)
    assert whole.hit_any is None and whole.target_loss is None
    # Ball, range and finiteness are the adapter's own checks; the distance shows the unit.
    assert (whole.linf <= (255 if attack.eps is None else attack.eps) + 3e-4).all()


def test_the_wrappers_of_torchattacks_are_no_attacks() -> None:
    assert {"PGD", "FGSM", "AutoAttack"} <= set(attack_names())
    assert {"LGV", "MultiAttack"}.isdisjoint(attack_names())
    with pytest.raises(UnknownNameError):
        adapt("MultiAttack")


def test_a_mistyped_attack_is_refused_with_the_closest_one_and_the_legal_ones() -> None:
    with pytest.raises(UnknownNameError) as caught:
        adapt("MIFGMS")
    assert "did you mean MIFGSM?" in str(caught.value) and "APGD, " in str(caught.value)


def test_a_mistyped_option_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(UsageError) as caught:
        adapt("PGD", [("step", "3")])
    assert str(caught.value) == (
        "an option of PGD must be one that it takes, but it has no option 'step': "
        "did you mean steps? it takes eps, alpha, steps, random_start")


def test_an_attack_without_options_says_so() -> None:
    with pytest.raises(UsageError, match="it takes no options"):
        adapt("VANILA", [("eps", "0.1")])


@pytest.mark.parametrize(("name", "key", "text", "value"), [
    ("PGD", "eps", "8/255", 8 / 255), ("PGD", "eps", "0.25", 0.25), ("PGD", "eps", "1", 1),
    ("PGD", "steps", "7", 7), ("PGD", "random_start", "False", False), ("CW", "lr", "1e-3", 0.001),
    ("PGD", "random_start", "true", True), ("APGD", "norm", "L2", "L2"), ("CW", "kappa", "-1", -1),
    ("AutoAttack", "seed", "3", 3), ("Pixle", "x_dimensions", "1, 4", (1, 4)),
])
def test_an_option_is_read_as_the_kind_of_its_default(name: str, key: str, text: str,
                                                      value: object) -> None:
    read = adapt(name, [(key, text)]).options[key]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(("name", "key", "text"), [
    ("PGD", "steps", "many"), ("PGD", "steps", ""), ("PGD", "eps", "8/0"), ("PGD", "eps", "nan"),
    ("PGD", "eps", "1.2.3"), ("PGD", "eps", "8/255/2"), ("PGD", "random_start", "1"),
    ("APGD", "norm", ""), ("Pixle", "x_dimensions", "2,x"), ("PGD", "eps", "1e999"),
])
def test_an_option_of_another_kind_is_refused(name: str, key: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{key} of {name} must be of the kind of its default"):
        adapt(name, [(key, text)])


@pytest.mark.parametrize(("name", "key"), [("PGD", "eps"), ("PGD", "alpha"), ("APGD", "eps"),
                                           ("PIFGSM", "max_epsilon")])
def test_a_radius_in_units_of_one_255th_is_refused(name: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        adapt(name, [(key, "8")])
    assert f"type {key}=8/255 if you mean units of 1/255" in str(caught.value)


def test_a_radius_of_another_norm_may_exceed_one() -> None:
    assert adapt("PGDL2", [("eps", "8")]).eps is None
    assert adapt("APGD", [("eps", "8"), ("norm", "L2")]).eps is None


@pytest.mark.parametrize(("name", "options", "eps"), [
    ("PGD", {}, 8.0), ("PGD", {"eps": "7/255"}, 7.0), ("PIFGSM", {}, 16.0), ("CW", {}, None),
    ("APGD", {"eps": "4/255"}, 4.0), ("SPSA", {}, 76.5), ("PGD", {"eps": "0"}, 0.0)])
def test_the_radius_is_reported_in_units_of_one_255th(name: str, options: dict[str, str],
                                                      eps: float | None) -> None:
    assert adapt(name, list(options.items())).eps == eps


def test_a_value_that_the_constructor_refuses_becomes_a_sentence() -> None:
    with pytest.raises(ProtocolError, match=r"torchattacks:Pixle must come to an end, but it "
                                            r"raised ValueError"):
        adapt("Pixle", [("restarts", "-1")])


def test_an_untargeted_attack_reads_no_targets() -> None:
    net = small_net()
    images, labels, ids = batch(net, 2)
    rule = parse_rule(f"fixed:{int(labels[0])}")
    result = adapt("TPGD")(net, images, labels, ids, targets=rule)
    assert result.targets is None and result.hit is None


def test_draws_follow_the_seed_and_the_image() -> None:
    net = small_net()
    images, labels, _ = batch(net, 1)
    attack = adapt("FFGSM")
    same, again, seed, image = (
        attack(net, images, labels, [image_id], targets=(labels + 1) % CLASSES, seed=seed)
        .adversarial for image_id, seed in (("a", 0), ("a", 0), ("a", 1), ("b", 0)))
    assert torch.equal(same, again)
    assert not torch.equal(same, seed) and not torch.equal(same, image)


@pytest.mark.parametrize("name", [name for name in attack_names() if adapt(name).targeted])
def test_a_targeted_attack_hears_its_target(name: str) -> None:
    net = small_net()
    images, labels, ids = batch(net, 3)
    targets = (labels + 1) % CLASSES
    strong = {"eps": "128/255", "alpha": "16/255", "steps": "10", "p_init": "0.9"}
    if name.endswith("L2"):
        strong = {"eps": "5", "alpha": "1"}
    taken = {key: value for key, value in strong.items() if key in adapt(name).parameters}
    options = {**QUICK.get(name, {}), **taken, **MORE.get(name, {})}
    result = adapt(name, list(options.items()))(net, images, labels, ids, targets=targets)
    loss = nn.functional.cross_entropy
    assert loss(result.adv_logits, targets) < loss(result.clean_logits, targets)


@pytest.mark.parametrize("name", ["FAB", "APGD", "DeepFool", "TPGD", "PIFGSM"])
def test_an_untargeted_attack_leaves_the_label(name: str) -> None:
    net = small_net()
    images, labels, ids = batch(net, 3)
    radius = [(key, "96/255") for key in ("eps", "max_epsilon") if key in adapt(name).parameters]
    result = adapt(name, radius)(net, images, labels, ids, targets=RANDOM)
    assert result.hit is None and (result.adv_pred != labels).any()


@pytest.mark.parametrize("name", ["APGDT", "FAB"])
def test_the_number_of_classes_is_the_models(name: str) -> None:
    net = small_net()
    images, labels, ids = batch(net, 2)
    options = [("eps", "0.01/255")] + ([("multi_targeted", "true")] if name == "FAB" else [])
    # The default of 10 classes fails on an image that is not fooled, since there are 6.
    result = adapt(name, options)(net, images, labels, ids, targets=RANDOM)
    assert torch.equal(result.adv_pred, labels)
    with pytest.raises(ProtocolError, match="IndexError"):
        adapt(name, [*options, ("n_classes", "10")])(net, images, labels, ids, targets=RANDOM)


@pytest.mark.parametrize("name", ["APGD", "Square"])
def test_an_attack_with_a_seed_of_its_own_follows_ours(name: str) -> None:
    net = small_net()
    images, labels, ids = batch(net, 1)
    options = [("eps", "160/255"), *MORE.get(name, {}).items()]
    targets = (labels + 1) % CLASSES
    one, two = (adapt(name, options)(net, images, labels, ids, targets=targets, seed=seed)
                for seed in (0, 1))
    fixed = adapt(name, [*options, ("seed", "5")])
    three, four = (fixed(net, images, labels, ids, targets=targets, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.adversarial, two.adversarial)
    assert torch.equal(three.adversarial, four.adversarial)


class Rude(Foreign):  # type: ignore[misc]
    """A fake attack that disturbs everything it can reach, then does what ``ending`` says."""

    ending: Callable[[Tensor], object]
    seen_training: list[bool] = []

    def __init__(self, model: nn.Module) -> None:
        super().__init__("Rude", model)
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> object:
        print("chatter")
        self.model.train()
        Rude.seen_training.append(any(module.training for module in self.model.modules()))
        for module in self.model.modules():
            module.training = True
        for weight in self.model.parameters():
            weight.requires_grad_(True)
        self.model.zero_grad()
        torch.manual_seed(99)
        np.random.seed(99)
        random.seed(99)
        return type(self).ending(images)


def rude(monkeypatch: pytest.MonkeyPatch, ending: Callable[[Tensor], object]) -> None:
    monkeypatch.setattr(torchattacks, "FGSM", Rude)
    monkeypatch.setattr(Rude, "ending", staticmethod(ending), raising=False)
    monkeypatch.setattr(Rude, "seen_training", [])


def numpy_state() -> list[int]:
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    return [int(word) for word in state["state"]["key"]]


def breaking(images: Tensor) -> Tensor:
    raise ValueError("no luck\nat all")


@pytest.mark.parametrize("ending", [breaking, torch.clone])
def test_everything_is_given_back_also_after_an_exception(
        monkeypatch: pytest.MonkeyPatch, ending: Callable[[Tensor], object]) -> None:
    rude(monkeypatch, ending)
    net = small_net()
    images, labels, ids = batch(net, 1)
    net(images).sum().backward()
    held = [weight.grad for weight in net.parameters()]
    next(net.parameters()).requires_grad_(False)
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    attack = adapt("FGSM")
    if ending is breaking:
        with pytest.raises(ProtocolError, match="torchattacks:FGSM must come to an end"):
            attack(net, images, labels, ids, targets=(labels + 1) % CLASSES)
    else:
        result = attack(net, images, labels, ids, targets=(labels + 1) % CLASSES)
        torch.testing.assert_close(result.adv_logits, net(images).detach())
    flags = [weight.requires_grad for weight in net.parameters()]
    assert flags == [False] + [True] * (len(flags) - 1)
    assert all(weight.grad is grad for weight, grad in zip(net.parameters(), held, strict=True))
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy_state() == states[1] and random.getstate() == states[2]


def test_asking_for_train_mode_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rude(monkeypatch, torch.clone)
    net = small_net()
    images, labels, ids = batch(net, 1)
    adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % CLASSES)
    assert Rude.seen_training == [False]


def test_one_image_cannot_spoil_the_mode_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    net = small_net()
    rude(monkeypatch, torch.clone)
    net.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    images, labels, ids = batch(net, 3)
    adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % CLASSES)
    assert not any(modes)


def test_an_attack_that_runs_the_model_in_train_mode_is_stopped(
        monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()

    class Trainer(Rude):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            net[1].train()
            self.get_logits(images)
            return images

    monkeypatch.setattr(torchattacks, "FGSM", Trainer)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images, labels, ids = batch(net, 1)
    with pytest.raises(ProtocolError, match=r"1 \(BatchNorm2d\) is in train mode"):
        adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net[1].training


def test_the_attacks_chatter_is_not_printed(monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    rude(monkeypatch, torch.clone)
    net = small_net()
    images, labels, ids = batch(net, 1)
    adapt("FGSM")(lambda x: net(x), images, labels, ids, targets=(labels + 1) % CLASSES)
    assert capsys.readouterr().out == ""


def test_an_exception_inside_an_attack_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    rude(monkeypatch, breaking)
    net = small_net()
    images, labels, ids = batch(net, 1)
    with pytest.raises(ProtocolError) as caught:
        adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % CLASSES)
    assert str(caught.value) == (
        "torchattacks:FGSM must come to an end, but it raised ValueError (no luck): "
        "give it other options or use another attack")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(("ending", "message"), [
    (lambda images: images + 2, "adversarial images must be finite and in"),
    (lambda images: images / 0, "adversarial images must be finite and in"),
    (lambda images: images[:, :1], "must have the shape and type of the clean ones"),
    (lambda images: None, "must come to an end, but it raised AttributeError"),
])
def test_what_is_no_adversarial_image_is_refused(monkeypatch: pytest.MonkeyPatch,
                                                 ending: Callable[[Tensor], object],
                                                 message: str) -> None:
    rude(monkeypatch, ending)
    net = small_net()
    images, labels, ids = batch(net, 1)
    with pytest.raises(ProtocolError, match=message):
        adapt("FGSM")(net, images.clamp(0.1), labels, ids, targets=(labels + 1) % CLASSES)


@pytest.mark.parametrize("excess", [1e-7, 0.9 / 255])
def test_a_small_excess_over_the_range_is_clipped_before_the_scoring(
        monkeypatch: pytest.MonkeyPatch, excess: float) -> None:
    rude(monkeypatch, lambda images: images * 0 - excess)
    net = small_net()
    images, labels, ids = batch(net, 1)
    monkeypatch.setattr(torchattacks, "Rude", Rude, raising=False)
    monkeypatch.setattr(torchattacks, "__all__", ["Rude"])
    result = adapt("Rude")(net, images, labels, ids, targets=(labels + 1) % CLASSES)
    assert torch.equal(result.adversarial, torch.zeros_like(images))
    torch.testing.assert_close(result.adv_logits, net(torch.zeros_like(images)).detach())


def test_an_attack_that_leaves_its_ball_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchattacks.PGD, "forward", lambda self, images, labels: 1 - images)
    net = small_net()
    images, labels, ids = batch(net, 1)
    with pytest.raises(ProtocolError, match="must stay within 8/255 of the clean ones"):
        adapt("PGD")(net, images, labels, ids, targets=RANDOM)


def test_a_model_that_fails_inside_keeps_its_own_error() -> None:
    calls = iter([False, True, True])

    def model(pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :CLASSES] / (0.0 if next(calls) else 1.0)

    with pytest.raises(ModelError, match="the model's logits must be finite"):
        adapt("PGD")(model, torch.rand(1, 3, 4, 4), torch.tensor([0]), ["a"], targets=RANDOM)


def test_a_model_in_train_mode_is_refused() -> None:
    with pytest.raises(ProtocolError, match="every part of the model must be in eval mode"):
        adapt("PGD")(small_net().train(), torch.rand(1, 3, 4, 4), torch.tensor([0]), ["a"],
                     targets=RANDOM)


@pytest.mark.parametrize("targets", [torch.tensor([0]), torch.tensor([CLASSES])])
def test_a_target_that_is_no_wrong_class_is_refused(targets: Tensor) -> None:
    with pytest.raises(ProtocolError, match="target"):
        adapt("PGD")(small_net(), torch.rand(1, 3, 4, 4), torch.tensor([0]), ["a"],
                     targets=targets)


@pytest.mark.parametrize(("settings", "count"), [
    (AttackSettings(seed=3, loss="margin", random_start=True, restarts=2), 2),
    (AttackSettings(attack="torchattacks:MIFGSM", options=(("steps", "2"),), seed=3), 1),
])
def test_settings_become_an_attack(settings: AttackSettings, count: int) -> None:
    net = small_net()
    images, labels, ids = batch(net, 4)
    results = build_attack(settings, settings.rule())(net, images, labels, ids)
    assert len(results) == count
    expected = RANDOM.choose(ids, labels, net(images), seed=3)
    assert all(torch.equal(some(result.targets), expected) for result in results)
    if settings.adapted is None:
        direct = targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM, seed=3,
                              loss="margin", random_start=True, restarts=2)
        assert all(torch.equal(one.adversarial, two.adversarial)
                   for one, two in zip(results, direct, strict=True))


def test_an_unknown_attack_of_torchattacks_fails_before_any_image() -> None:
    settings = AttackSettings(attack="torchattacks:PGDD")
    with pytest.raises(UnknownNameError, match="did you mean PGD"):
        build_attack(settings, RANDOM)
