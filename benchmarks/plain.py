"""WS-RAM+q+c as one would write it by hand: plain PyTorch, without Pyro or this library.

There are two parts. :class:`PlainLoop` is a whole training loop in the usual style: digits placed and
glimpses read by ``affine_grid`` / ``grid_sample``. :func:`by_hand` is only the mathematics of one
step, on the networks of ``models/``, for a comparison of the objective with nothing else changed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

SCALES = (1, 2, 4)


def wake_sleep_loss(log_prior: Tensor, log_likelihood: Tensor, log_proposal: Tensor) -> Tensor:
    """Eq. 16 with 18, and eq. 17, on ``[particle, image]`` tensors."""
    with torch.no_grad():
        log_ratio = log_prior - log_proposal
        weights = torch.softmax(log_ratio + log_likelihood, 0)
        ratios = torch.softmax(log_ratio, 0)
    gain = weights * log_likelihood + (weights - ratios) * log_prior
    gain = gain + (weights - 1 / weights.shape[0]) * log_proposal
    return -gain.sum()


class PlainLoop(nn.Module):
    """The model, its inference network, its data and its update, in one class.

    Args:
        digits: ``[N, 28, 28]`` in [0, 1]; labels: ``[N]``.
    """

    def __init__(self, digits: Tensor, labels: Tensor, hidden: int = 128, patch: int = 12) -> None:
        super().__init__()
        self.register_buffer("digits", digits)
        self.register_buffer("labels", labels)
        self.patch = patch
        h, s = hidden, len(SCALES)
        self.context = nn.Sequential(nn.Linear(144, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU())
        self.what, self.where = nn.Linear(patch * patch, h), nn.Linear(2 + s, h)
        self.glimpse = nn.Linear(h, h)
        self.rnn1, self.rnn2 = nn.Linear(2 * h, h), nn.Linear(2 * h, h)
        self.policy, self.label = nn.Linear(h, 2 + s), nn.Linear(h, 10)
        self.proposal = nn.Sequential(nn.Linear(h + 10, h), nn.ReLU(), nn.Linear(h, 2 + s))
        with torch.no_grad():
            for rnn in (self.rnn1, self.rnn2):
                rnn.weight[:, h:] = 0.9 * torch.eye(h)
        offsets = 2 * (torch.arange(patch) - (patch - 1) / 2) / 100
        self.register_buffer("grid", torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), -1))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Digits resized and placed at random on 100 x 100 pixels."""
        device = self.digits.device
        index = torch.randint(len(self.digits), (size,), device=device)
        scale = 0.6 + torch.rand(size, device=device)
        reach = 1 - 0.28 * scale
        shift = (2 * torch.rand(size, 2, device=device) - 1) * reach[:, None]
        theta = torch.zeros(size, 2, 3, device=device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / (0.28 * scale)
        theta[:, :, 2] = -shift / (0.28 * scale)[:, None]
        grid = F.affine_grid(theta, [size, 1, 100, 100], align_corners=False)
        images = F.grid_sample(self.digits[index].unsqueeze(1), grid, align_corners=False)
        return images, self.labels[index]

    def read(self, levels: list[Tensor], location: Tensor, scale: Tensor) -> Tensor:
        """Patches at the chosen location of the chosen scale; every scale is read and one is kept."""
        particles, size = location.shape[:2]
        patches = []
        for factor, level in zip(SCALES, levels, strict=True):
            grid = location.transpose(0, 1).reshape(size, particles, 1, 1, 2) + factor * self.grid
            grid = grid.reshape(size, particles * self.patch, self.patch, 2)
            patches.append(F.grid_sample(level, grid, align_corners=False))
        read = torch.stack(patches).reshape(len(SCALES), size, particles, -1).transpose(1, 2)
        index = scale[None, :, :, None].expand(1, *read.shape[1:])
        return read.gather(0, index)[0]

    def policy_of(self, out: Tensor, std: float) -> tuple[Normal, Categorical]:
        return Normal(torch.tanh(out[..., :2]), std), Categorical(logits=out[..., 2:])

    def loss(self, images: Tensor, labels: Tensor, particles: int = 5, std: float = 0.15) -> Tensor:
        size = len(labels)
        levels = [images if s == 1 else F.avg_pool2d(images, s) for s in SCALES]
        r2 = self.context(F.adaptive_avg_pool2d(images, 12).flatten(1)).expand(particles, size, -1)
        r1 = torch.zeros_like(r2)
        one_hot = F.one_hot(labels, 10).to(images).expand(particles, size, 10)
        log_prior = log_proposal = images.new_zeros(particles, size)
        entropy = images.new_zeros(())
        for _ in range(4):
            prior = self.policy_of(self.policy(r2), std)
            proposal = self.policy_of(self.proposal(torch.cat([r2.detach(), one_hot], -1)), std)
            location, scale = proposal[0].sample(), proposal[1].sample()
            log_prior = log_prior + prior[0].log_prob(location).sum(-1) + prior[1].log_prob(scale)
            log_proposal = log_proposal + proposal[0].log_prob(location).sum(-1)
            log_proposal = log_proposal + proposal[1].log_prob(scale)
            entropy = entropy + prior[1].entropy().sum() + proposal[1].entropy().sum()
            patch = self.read(levels, location, scale)
            code = torch.cat([location, F.one_hot(scale, len(SCALES)).to(location)], -1)
            glimpse = F.relu(self.glimpse(F.relu(self.what(patch)) * F.relu(self.where(code))))
            r1 = F.relu(self.rnn1(torch.cat([glimpse, r1], -1)))
            r2 = F.relu(self.rnn2(torch.cat([r1, r2], -1)))
        log_likelihood = Categorical(logits=self.label(r1)).log_prob(labels)
        return wake_sleep_loss(log_prior, log_likelihood, log_proposal) - 0.03 * entropy / particles

    def update(self, size: int = 64) -> None:
        images, labels = self.batch(size)
        self.optimizer.zero_grad()
        (self.loss(images, labels) / size).backward()
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        self.optimizer.step()


def by_hand(
    model: nn.Module, guide: nn.Module, images: Tensor, labels: Tensor, particles: int
) -> Tensor:
    """The loss of ``WakeSleep`` with the paper's control variate, on the shipped networks."""
    network, proposal = model.network, guide.network
    std = model.location_std
    label = proposal.label(labels)
    pyramid, r1, r2 = network.start(images)
    terms: dict[str, list[Tensor]] = {"prior": [], "proposal": []}
    for n in range(model.num_glimpses):
        r2 = network.decide(r1, r2) if n else r2
        mean, logits = proposal(r2.detach(), label)
        mean, logits = (x.expand(particles, *labels.shape, -1) for x in (mean, logits))
        where, which = (
            Normal(mean, std, validate_args=False),
            Categorical(logits=logits, validate_args=False),
        )
        location, scale = where.sample(), which.sample()
        terms["proposal"] += [where.log_prob(location).sum(-1), which.log_prob(scale)]
        mean, logits = network.policy(r2)
        where, which = (
            Normal(mean, std, validate_args=False),
            Categorical(logits=logits, validate_args=False),
        )
        terms["prior"] += [where.log_prob(location).sum(-1), which.log_prob(scale)]
        r1 = network.look(pyramid, location, scale, r1)
    log_likelihood = Categorical(logits=network.classify(r1), validate_args=False).log_prob(labels)
    return wake_sleep_loss(sum(terms["prior"]), log_likelihood, sum(terms["proposal"]))
