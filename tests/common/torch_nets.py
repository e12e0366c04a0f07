"""The networks of the SLTT paper in PyTorch, a time step a call, with the module names of the authors' code.

Written from the paper and the facts known of that code, to hold weights and gradients against; `blocks` and
`width` make them as small as a test likes.
"""

import torch
from peers.with_pytorch import Spike
from torch import nn
from torch.nn import functional as F


class LIF(nn.Module):
    def __init__(self, tau, v_threshold=1.0, v_reset=None, decay_input=False, detach_reset=False):
        super().__init__()
        self.tau, self.v_threshold, self.v_reset = tau, v_threshold, v_reset
        self.decay_input, self.detach_reset = decay_input, detach_reset
        self.temporal_gradient = True
        self.v = None

    def forward(self, x):
        rest = self.v_reset or 0.0
        v = torch.full_like(x, rest) if self.v is None else self.v
        v = v if self.temporal_gradient else v.detach()
        x = x / self.tau if self.decay_input else x
        u = v - (v - rest) / self.tau + x
        s = Spike.apply(u - self.v_threshold)
        r = s.detach() if self.detach_reset else s
        self.v = u - r * self.v_threshold if self.v_reset is None else (1 - r) * u + r * self.v_reset
        return s


class PreActBlock(nn.Module):
    def __init__(self, channels, features, stride, neuron):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(channels), LIF(**neuron)
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1)
        self.bn2, self.relu2 = nn.BatchNorm2d(features), LIF(**neuron)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != features:
            self.shortcut = nn.Conv2d(channels, features, 1, stride)

    def forward(self, x):
        s = self.relu1(self.bn1(x))
        return self.conv2(self.relu2(self.bn2(self.conv1(s)))) + self.shortcut(s)


class ResNet(nn.Module):
    def __init__(self, blocks, classes, neuron, width, channels):
        super().__init__()
        n = round(64 * width)
        self.conv1 = nn.Conv2d(channels, n, 3, 1, 1, bias=False)
        for stage, count in enumerate(blocks):
            layers = []
            for i in range(count):
                features = round(64 * 2**stage * width)
                layers.append(PreActBlock(n, features, 2 if stage > 0 and i == 0 else 1, neuron))
                n = features
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn1, self.relu1, self.linear = nn.BatchNorm2d(n), LIF(**neuron), nn.Linear(n, classes)
        self.stages = len(blocks)

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(F.avg_pool2d(self.relu1(self.bn1(x)), 4).flatten(1))


class VGG(nn.Module):
    def __init__(self, convs, classes, neuron, width, channels):
        super().__init__()
        for stage, (count, size) in enumerate(zip(convs, (64, 128, 256, 512, 512), strict=True)):
            layers, n = [], round(size * width)
            for _ in range(count):
                conv = nn.Conv2d(channels, n, 3, 1, 1)
                layers += [conv, nn.BatchNorm2d(n), LIF(**neuron), nn.Dropout(0.0)]
                channels = n
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers, nn.AvgPool2d(2, 2)))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(n * 49, classes))

    def forward(self, x):
        for stage in range(5):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 7))


class ScaledWSConv2d(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x):
        w = self.weight
        var, mean = torch.var_mean(w, dim=(1, 2, 3), keepdim=True)
        w = self.gain * (w - mean) / torch.sqrt(var * w[0].numel() + 1e-4)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class NFBlock(nn.Module):
    def __init__(self, channels, features, stride, beta, neuron, bottleneck):
        super().__init__()
        out = 4 * features if bottleneck else features
        self.sn1, self.sn2, self.beta = LIF(**neuron), LIF(**neuron), beta
        if bottleneck:
            self.conv1 = ScaledWSConv2d(channels, features, 1)
            self.conv2 = ScaledWSConv2d(features, features, 3, stride, 1)
            self.sn3, self.conv3 = LIF(**neuron), ScaledWSConv2d(features, out, 1)
        else:
            self.conv1 = ScaledWSConv2d(channels, features, 3, stride, 1)
            self.conv2 = ScaledWSConv2d(features, features, 3, 1, 1)
        self.bottleneck = bottleneck
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = ScaledWSConv2d(channels, out, 1, stride)
        self.skipinit_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        out = 2.74 * self.sn1(x / self.beta)
        identity = x if self.downsample is None else self.downsample(out)
        out = self.conv2(2.74 * self.sn2(self.conv1(out)))
        if self.bottleneck:
            out = self.conv3(2.74 * self.sn3(out))
        return out * self.skipinit_gain * 0.2 + identity


class NFResNet(nn.Module):
    def __init__(self, blocks, bottleneck, classes, neuron, width, channels):
        super().__init__()
        n, var = round(64 * width), 1.0
        self.conv1 = ScaledWSConv2d(channels, n, 7, 2, 3)
        for stage, count in enumerate(blocks):
            layers = []
            for i in range(count):
                features, stride = round(64 * 2**stage * width), 2 if stage > 0 and i == 0 else 1
                block = NFBlock(n, features, stride, var**0.5, neuron, bottleneck)
                var = (1.0 if block.downsample is not None else var) + 0.04
                n = 4 * features if bottleneck else features
                layers.append(block)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc, self.stages = nn.Linear(n, classes), len(blocks)

    def forward(self, x):
        x = F.avg_pool2d(self.conv1(x), 3, 2, 1)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


def run(net, xs, target, temporal_gradient, scored=None):
    """Logits `[T, B, classes]`, and the cross entropy of the `scored` steps over T after its backward."""
    for module in net.modules():
        if isinstance(module, LIF):
            module.v, module.temporal_gradient = None, temporal_gradient
    logits = torch.stack([net(x) for x in xs])
    steps = range(len(xs)) if scored is None else scored
    loss = sum(F.cross_entropy(logits[t], target) for t in steps) / len(xs)
    loss.backward()
    return logits, loss
