"""An agent.toml with every key, printed by `edge-agent config sample` and filled in by `edge-agent enroll`."""

SAMPLE = """\
# edge-agent settings. Every key is shown with its default, or with an example where there is none.
device = "kitchen-pi"              # this device's name in the fleet: 2 to 63 of a-z 0-9 -
fleet = "demo"                     # the fleet it belongs to, named likewise
state = "state"                    # folder for what must survive; relative to this file

[broker]
url = "mqtts://127.0.0.1:8883"     # edge-agent enroll sets it up; mqtt:// is without TLS, for this machine only
plain = "no"                       # "trusted-network" lets mqtt:// go anywhere, and warns
longest_retry_s = 60.0             # waits between attempts to connect grow up to this, with chance in them
keepalive_s = 60                   # a connection gone silent is noticed, and left, after twice this

[data]
path = "shard.npz"                 # a file, folder or glob of what docs/data.md lists; or
# source = "my_sensors:load"       # module:function that returns the arrays
kind = "auto"                      # arrays, csv, wav, images, sqlite; auto: by the names of the files
inputs = ["x"]                     # names of the input arrays
target = "y"                       # name of the target array
labels = "auto"                    # of sounds and pictures: folder, or a table's name; auto: labels.csv where it is
classes = []                       # the labels' names, in the order of the model's classes; []: labels are numbers
# columns.x = ["volts", "amps"]    # of tables: each array's columns; default: the target's name, and all others
query = ""                         # of an SQLite file: SELECT ... ORDER BY ...
most_left_out = 0.1                # share of examples, or files, that may be unusable before a task is refused
settle_s = 3.0                     # files of a folder that changed in the last so many seconds wait
hold_out = 0.0                     # share set aside, never trained on, to try every round's model on; 0.1 is usual
hold_out_seed = 0                  # which examples that are
# hold_out_path = "held.npz"       # other files to try it on, in place of a share
memory_mib = 256                   # what examples may take; larger .npy files stay on the disk
# wav.rate_hz = 16000              # of sounds: at which the model was trained; default 0: as it is (docs/data.md)
# wav.hop = 8000                   # samples from one window to the next; default 0: one window of each file
# wav.mean = 0.0                   # taken from each value; and it is divided by
# wav.std = 1.0                    # this
# images.scale = 0.00392156862745098    # of pictures: (value * scale - mean) / std; default: 1 / 255
# images.mean = [0.0]              # one number, or one for each channel
# images.std = [1.0]               # likewise
# images.fit = "crop"              # of another shape than the model's: keep the middle, or "stretch"

[training]
backend = "auto"                   # auto, or a backend's name
variant = "auto"                   # auto: what the coordinator asks for; a name pins this device to it
threads = 1                        # threads for one training step
idle_unload_s = 60.0               # let go of runtime and data after so long without work
residual_rounds = 50               # after more missed rounds, what codecs left unsent is dropped
checkpoint_s = 60.0                # seconds of training between checkpoints of a task; 0: none (docs/sparsity.md)
trial_steps = 3                    # finite steps before this device commits to a new bundle (docs/slots.md)
process = "child"                  # of lower priority and with limits, killed at no loss; "same" is the agent's own
nice = 10                          # how much lower that process's priority is, 0 to 19

[personal]                         # a head of this device's own, which stays here (docs/algorithms.md)
enabled = false                    # true: it is trained with every task, and edge-agent personal shows and uses it
steps = 200                        # of softmax regression, from each round's head; 0 leaves that
batch_size = 32                    # examples a step
rate = 0.5                         # 1 is the largest that cannot overshoot, whatever the features
weight_decay = 0.0                 # how strongly the fleet's head pulls
most_examples = 2000               # of the training examples so many are drawn, for its memory and time
report = false                     # true: with an update the coordinator hears its accuracies, and nothing else of it
deploy = false                     # true: fetch the graph to deploy, and keep a model with this head in state/personal

[limits]
disk_mib = 512                     # for bundle, model and outbox together
memory_mib = 0                     # for training, which width tiers go by; 0: what the system has free
cpu_percent = 0                    # of one core, of the whole agent as a systemd service; 0: no limit

[eligibility]                      # when this device may train; every rule is off at its default (docs/eligibility.md)
power = "any"                      # "mains" asks for mains
least_battery_percent = 0.0        # of a battery that is in use
most_temperature_c = 0.0           # of the hottest thermometer
most_load = 0.0                    # of other work, per core
least_memory_mib = 0               # that stay free
least_disk_mib = 0                 # that stay free where the state is
metered = "use"                    # "avoid" waits while the way out leads over one of these:
metered_interfaces = ["wwan*", "ppp*", "rmnet*"]    # names of interfaces, * for any end
window = ""                        # of the day, local time, as "22:00-06:00"
bytes_per_day = 0                  # over the link, either way
writes_mib_per_day = 0             # to the disk
interval_s = 30.0                  # between two looks while a task is in hand
wait_s = 600.0                     # a task that has not begun waits so long, then it is refused
"""
