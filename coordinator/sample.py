"""A coordinator.toml with every key, printed by `fleet-coordinator config sample`."""

SAMPLE = """\
# Settings of fleet-coordinator. Paths are relative to this file's folder.
fleet = "demo"                  # 2 to 63 characters of a-z, 0-9 and '-'; agents name the same
bundle = "bundle"               # folder made by fleet-export
state = "coordinator-state"     # everything the coordinator keeps
seed = 0                        # of device choice and of the devices' shuffling

[broker]
url = "auto"                    # a private broker on this machine; or "mosquitto", "embedded", "mqtts://host:8883"
host = "127.0.0.1"              # where a private broker listens; 0.0.0.0 lets other machines in, with certificates
port = 8883                     # 0: any free port
plain = "no"                    # without TLS: "loopback" on this machine, "trusted-network" anywhere (it warns)

[trust]                         # who may join (docs/enrolment.md)
folder = "trust"                # the fleet's own CA: keep it private, and keep a copy
host = ""                       # where devices enrol; default: as the broker
port = 8884                     # 0: any free port
certificate_days = 30.0         # devices renew by themselves when two thirds are over
require_seals = true            # false also hears agents of before there were seals (docs/signing.md)

[rounds]
count = 30                      # no more rounds than this
# target_accuracy = 0.95        # stop as soon as held-out accuracy reaches this
devices = 5                     # updates that close a round
# minimum = 3                   # updates that are enough at the deadline; default: all
over_select = 1.0               # 1.3 asks 30 % more devices than needed; the slowest are late
deadline_s = 120.0
late_hours = 24.0               # late updates are folded so long after their round began; 0: their tasks are withdrawn
late_rounds = 100               # and so many rounds after it
staleness = 0.5                 # an update t versions behind counts as (1 + t)^-staleness; 0: like any other
mode = "sync"                   # "buffered": a version every `buffer` updates, while `devices` work (docs/rounds.md)
# buffer = 3

[training]
local_epochs = 1                # over each device's own data, or
# local_steps = 50              # the same number of batches on every device
post_local = 0                  # with local_steps: one step a round before this round (docs/algorithms.md); 0: none
batch_size = 32
learning_rate = 0.05
schedule = "constant"           # or "cosine" over all rounds, or "step": times decay_factor every decay_every rounds
decay_every = 10
decay_factor = 0.5
codec = "all/float32"           # or all/float16, topk:0.06/int4, ..., under a mask mask/float16 (docs/codecs.md);
                                # "auto": for each device and round by its link and its bytes today
# codecs = ["all/float16", "topk:0.06/int4"]   # in place of codec: what "auto" chooses from, the richest first

[training.budget]               # local_steps as the most of a round, and as many as these bytes ask; 0: no budget
steps = 0                       # of a device in the whole run
mib = 0.0                       # that the whole fleet may send and receive for them

[training.optimizer]
name = "sgd"                    # or "adamw"; "qg": quasi-global momentum (docs/algorithms.md)
momentum = 0.9
nesterov = false
# keep_momentum = true          # of sgd: a device's velocity goes on in its next round
# mu = 0.9                      # of qg: what stays of its momentum from round to round
weight_decay = 0.0
proximal = 0.0                  # FedProx's mu
# beta1 = 0.9                   # these three for adamw
# beta2 = 0.999
# epsilon = 1e-8

[fold]                          # how updates become one (docs/robustness.md)
rule = "mean"                   # or "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"
trim = 0.25                     # of trimmed-mean: the share of values left out at either end
byzantine = 1                   # of krum and multi-krum: how many devices may lie; they need 2 x this + 3 updates
clip = "median"                 # no update counts beyond clip_factor times the median norm; or a norm; or "none"
clip_factor = 2.0
bucket = 1                      # so many updates are averaged before a robust rule sees them; 2 where data differ
memory = 0.0                    # of multi-krum: what a device's distances still count for a fold later, as 0.9

[privacy]                       # central differential privacy (docs/robustness.md); needs the extra privacy
noise_multiplier = 0.0          # noise on the sum of updates, in parts of clip, as 1.0; 0: none
clip = 1.0                      # the norm that every update is clipped to where there is noise
delta = 1e-5                    # at which epsilon is told; well below 1 / devices

[server]
step = "add"                    # or "momentum", "adam"
learning_rate = 1.0
momentum = 0.9
beta1 = 0.9
beta2 = 0.99
epsilon = 1e-3

[tiers]
select = "importance"           # channels, in bundles of fleet-export --tiers; or "static", "rolling"; "off": no tiers
refresh_every = 1               # rounds between choices
target_s = 0.0                  # a device's steps and bytes may take so long; 0: 1.2 times the fleet's median
assign = {}                     # tiers that are given, not measured, as in { pi-zero-1 = "tier-025", gateway = "full" }

[sparsity]                      # one mask for the whole fleet (docs/sparsity.md); not together with tiers
final = 0.0                     # share of prunable parameters left out at the end, as 0.9; 0: no mask
begin_round = 1                 # from here the sparsity rises along a cubic
# end_round = 20                # to here; default: three quarters of all rounds
refresh_every = 1               # rounds between masks
# last_refresh = 20             # until here; default: end_round, so that the last rounds train under one mask
report_every = 2                # rounds between reports of gradients off the mask; 0: none, and nothing comes back
report_fraction = 0.05          # of the parameters left out, whose gradients a report tells
distribution = "global"         # one threshold over all tensors; or "uniform", "erk"

[masking]                       # weights stay as they are, and devices vote which to keep (docs/algorithms.md)
keep = 0.0                      # the chance of each weight that the run begins with, as 0.9; 0: weights are trained

[downlink]
codec = "all/float32"           # the model, whole; or its difference to one that the device has, as topk:0.1/int8
keep_versions = 8               # a device further behind gets the whole model

[evaluation]
# data = "test.npz"             # held-out examples; without them no accuracy is known
every = 1                       # rounds between evaluations
batch_size = 256

[distillation]                  # learning from clients' models after the fold (docs/distillation.md)
# bundle = "distillation"       # of fleet-export --distillation; without it nothing is distilled
# data = "unlabelled.npz"       # inputs of the same kind as the devices'
# validation = "validation.npz" # labelled ones, by which the best model is kept; not the test data
every = 1                       # rounds between distillations
steps = 1000                    # at most; messages wait meanwhile
batch_size = 128
learning_rate = 1e-3            # of Adam, falling to 0 along a cosine
check_every = 100               # steps between trials on the validation data
patience = 500                  # steps without a better model end it
drop_worst = false              # true: clients no better than chance do not teach
# peers = [{ state = "../other/coordinator-state", bundle = "../other/bundle" }]   # other architectures

[gossip]                        # a fleet without a hub: devices learn from their neighbours (docs/gossip.md)
# topology = "ring"             # or chain, torus, star, full, exponential, binary-tree, erdos-renyi:0.3; or
# links = "links.txt"           # a link a line, as the names of two devices; with neither, devices meet at the hub
algorithm = "choco"             # or "relay": RelaySum, for bad links
patience_s = 60.0               # of relay: an exchange waits so long, then goes on without who is late
codec = "all/sign"              # of what neighbours say, of relay all/float32; [training] codec: of what is collected
gamma = "auto"                  # of CHOCO-SGD, tuned for each graph; or a number above 0 and at most 1
exchanges = 10                  # between two rounds, in which the devices' mean model becomes a version
gossip_rounds = 1               # exchanges after each training
minimum = 2                     # devices that go on without the others; the run begins with rounds.devices
dead_after_s = 300.0            # of silence, after which a device is left out; longer than it trains for an exchange
target = 1.0                    # consensus control: devices' distance, as a share of the largest, as 0.25; 1: none
first_phase = 0                 # exchanges from the beginning that are controlled
seed = 0                        # of graphs that are drawn

[limits]
disk_mib = 4096                 # half for updates, half for models; the oldest give way
keep_rounds = 10                # updates of so many folded rounds are kept
uploads = 256                   # so many send at once, each half a MiB in the broker; the others wait their turn
examples = 1000000              # no device counts for more examples than this
weight = 2.0                    # nor for more than this times the median device of its round; 0: no limit
norm = 50.0                     # an update over this times the median norm is refused; 0: none is
device_messages_per_minute = 12000   # of one device; what is beyond is not read; 0: no limit
device_mib_per_minute = 1024    # the same in bytes
device_bytes_per_day = 0        # up and down, from midnight to midnight UTC; then a device rests; 0: no limit
"""
