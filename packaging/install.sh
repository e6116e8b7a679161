#!/bin/sh
# Installs the agent on this device, enrols it and starts it; see --help. Safe to run twice.
set -eu
export LC_ALL=C
# What is written here the service's user must read, whatever root's own umask; the token has another.
umask 022

PACKAGE=edge-agent
CONFIG=/etc/edge-agent/agent.toml
STATE=/var/lib/edge-agent
# The package unpacked, the model and the outbox. Memory: the agent at rest and a small model in training.
NEED_DISK_MIB=600
NEED_MEMORY_MIB=200
# 2026-01-01: before this program was written no clock is right.
EARLIEST=1767225600

usage() {
    cat <<'EOF'
Usage: install.sh [OPTIONS] URL-OR-FILE TOKEN
       install.sh --uninstall [--purge]

Checks this board, installs the package edge-agent from URL-OR-FILE (a .deb), enrols the device with TOKEN, starts
the service, and says what it did. What is done already is left as it is, so that it may be run again.

  URL-OR-FILE         edge-agent_VERSION_ARCHITECTURE.deb; an http:// address needs --sha256
  TOKEN               of `fleet-coordinator token`; or @FILE that holds it, or - for standard input
  --coordinator H:P   where to enrol (default: the URL's host, port 8884)
  --device ID         this device's name in the fleet (default: its host name)
  --data PATH         its training data, file or folder (default: /var/lib/edge-agent/data, made empty)
  --sha256 HEX        the package must have this digest
  --no-start          enrol only
  --uninstall         remove the package; state and configuration stay, but for --purge
  --help

examples:
  sh install.sh --coordinator server:8884 --data /srv/shards ./edge-agent_0.2.0_arm64.deb TOKEN
  sh install.sh https://server/edge-agent_0.2.0_arm64.deb @/root/token

exit codes: 0 ok, 1 failure, 3 usage, or a board that will not do, 4 unreachable, 5 not enrolled
EOF
}

say() { echo "install: $*"; }
warn() { echo "install: warning: $*" >&2; }
fail() {
    code=$1
    shift
    echo "install: $*" >&2
    exit "$code"
}

coordinator='' device='' data='' sha256='' start=yes uninstall='' purge='' source='' token='' work=''
while [ $# -gt 0 ]; do
    case $1 in
    --coordinator | --device | --data | --sha256)
        [ $# -ge 2 ] || fail 3 "$1 needs a value; see --help"
        case $1 in
        --coordinator) coordinator=$2 ;;
        --device) device=$2 ;;
        --data) data=$2 ;;
        --sha256) sha256=$2 ;;
        esac
        shift
        ;;
    --no-start) start= ;;
    --uninstall) uninstall=yes ;;
    --purge) purge=yes ;;
    --help | -h)
        usage
        exit 0
        ;;
    -?*) fail 3 "unknown option $1; see --help" ;;
    *)
        if [ -z "$source" ]; then
            source=$1
        elif [ -z "$token" ]; then
            token=$1
        else
            fail 3 "one argument too many; see --help"
        fi
        ;;
    esac
    shift
done

[ "$(id -u)" = 0 ] || fail 3 "needs root, to install a package: sudo sh install.sh ..."
{ command -v dpkg && command -v apt-get; } >/dev/null ||
    fail 3 "this is no Debian or like it (no dpkg, no apt-get); use the wheel there: docs/install.md"
export DEBIAN_FRONTEND=noninteractive

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' $PACKAGE 2>/dev/null)" = installed ]; }
systemd() { [ -d /run/systemd/system ]; }
enrolled() { [ -e $STATE/identity/identity.json ] && [ -e $CONFIG ]; }

if [ -n "$uninstall" ]; then
    [ -z "$source" ] || fail 3 "--uninstall takes no package and no token"
    status=$(dpkg-query -W -f='${db:Status-Status}' $PACKAGE 2>/dev/null || true)
    if [ -n "$purge" ] && [ "${status:-not-installed}" != not-installed ]; then
        # dpkg, for apt does not know a removed package that came as a file.
        dpkg --purge $PACKAGE >/dev/null || fail 1 "dpkg --purge $PACKAGE failed"
        say "removed $PACKAGE with its state, configuration and user"
    elif installed; then
        apt-get -qq -y remove $PACKAGE >/dev/null || fail 1 "apt-get remove $PACKAGE failed"
        say "removed $PACKAGE; $STATE and /etc/edge-agent are left (--uninstall --purge removes them)"
    else
        say "$PACKAGE is not installed; nothing to do"
    fi
    exit 0
fi
[ -z "$purge" ] || fail 3 "--purge goes with --uninstall"
[ -n "$token" ] || fail 3 "needs URL-OR-FILE and TOKEN; see --help"

# Where no other user looks, and gone at the end, however that comes.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# The board.

getconf GNU_LIBC_VERSION >/dev/null 2>&1 || fail 3 "this system's C library is not glibc, which the package needs"
architecture=$(dpkg --print-architecture)
case $architecture in
amd64 | arm64) ;;
armhf | armel | i386)
    fail 3 "this system is 32 bits ($architecture), for which there is no ONNX Runtime; install the 64-bit system" \
        "if the board can run it (every Raspberry Pi from 3 on can)"
    ;;
*) fail 3 "there is no package for $architecture, only for amd64 and arm64" ;;
esac
[ "$(date +%s)" -ge $EARLIEST ] ||
    fail 3 "this machine's clock says $(date '+%Y-%m-%d'), so that no certificate can be checked; set it:" \
        "timedatectl set-ntp true, or date -s 'YYYY-MM-DD HH:MM'"
memory_mib=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo) / 1024))
[ $memory_mib -ge $NEED_MEMORY_MIB ] || fail 3 "this board has $memory_mib MiB of memory and needs $NEED_MEMORY_MIB"
free_mib=$(df -Pm /var/lib | awk 'NR == 2 { print $4 }')
installed || [ "$free_mib" -ge $NEED_DISK_MIB ] ||
    fail 3 "/var/lib has $free_mib MiB free and needs $NEED_DISK_MIB"
say "board: $architecture, $memory_mib MiB of memory, $free_mib MiB of disk free, clock $(date '+%Y-%m-%d %H:%M %Z')"

# The package.

case $source in
http://* | https://*)
    case $source in
    http://*) [ -n "$sha256" ] || fail 3 "$source is not encrypted; say --sha256, or use https://" ;;
    esac
    deb=$work/edge-agent.deb
    if command -v curl >/dev/null; then
        curl -fsSL -o "$deb" "$source" || fail 4 "$source cannot be fetched"
    elif command -v wget >/dev/null; then
        wget -q -O "$deb" "$source" || fail 4 "$source cannot be fetched"
    else
        fail 3 "neither curl nor wget is there to fetch $source; apt-get install curl, or name a file"
    fi
    if [ -z "$coordinator" ]; then
        host=${source#*://}
        host=${host%%/*}
        host=${host##*@}
        coordinator=${host%:*}:8884
    fi
    ;;
*)
    [ -f "$source" ] || fail 3 "$source is neither a file nor an address"
    deb=$work/edge-agent.deb
    cp "$source" "$deb"
    ;;
esac
if [ -n "$sha256" ]; then
    found=$(sha256sum "$deb")
    [ "${found%% *}" = "$sha256" ] || fail 1 "$source has the digest ${found%% *}, not $sha256; nothing was installed"
fi
[ "$(dpkg-deb -f "$deb" Package 2>/dev/null)" = $PACKAGE ] || fail 3 "$source is no package $PACKAGE"
found=$(dpkg-deb -f "$deb" Architecture)
[ "$found" = "$architecture" ] || fail 3 "$source is for $found and this is $architecture; take the other file"
version=$(dpkg-deb -f "$deb" Version)
# apt's own user must reach it.
chmod 0755 "$work"
chmod 0644 "$deb"

# What enrolling needs is asked for before anything is installed.
if ! enrolled; then
    [ -n "$coordinator" ] || fail 3 "where does this device enrol? say --coordinator HOST:8884; nothing was installed"
    case $token in
    @*) [ -r "${token#@}" ] || fail 3 "${token#@} cannot be read, which should hold the token; nothing was installed" ;;
    esac
fi
before=$(dpkg-query -W -f='${Version}' $PACKAGE 2>/dev/null || true)
if installed && [ "$before" = "$version" ]; then
    say "$PACKAGE $version is installed already"
else
    if ! command -v python3.11 >/dev/null && ! apt-cache show python3.11 >/dev/null 2>&1; then
        apt-get -qq update || warn "apt-get update failed"
        apt-cache show python3.11 >/dev/null 2>&1 ||
            fail 3 "there is no Python 3.11 here, which Debian 12 has; use the wheel on other systems: docs/install.md"
    fi
    apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install "$deb" >"$work/apt.log" 2>&1 || {
        tail -n 20 "$work/apt.log" >&2
        fail 1 "apt-get install failed"
    }
    if [ -n "$before" ]; then say "installed $PACKAGE $version over $before"; else say "installed $PACKAGE $version"; fi
fi

# The identity.

if enrolled; then
    say "this device is enrolled already; its token was not used (a new identity: edge-agent enroll --help)"
else
    if [ -z "$device" ]; then
        device=$(tr '[:upper:]' '[:lower:]' </proc/sys/kernel/hostname | tr -c 'a-z0-9\n' '-' | sed 's/^-*//; s/-*$//' | cut -c 1-63)
    fi
    if [ -z "$data" ]; then
        data=$STATE/data
        # By the user whose folder it is in: root would follow what that user put there.
        [ ! -L $data ] || fail 3 "$data is a link; name with --data the folder that it leads to"
        runuser -u edge-agent -- mkdir -p -m 0750 $data || fail 1 "the user edge-agent cannot make $data"
    fi
    case $data in
    /*) ;;
    *) data=$(pwd)/$data ;;
    esac
    # By a file, so that no list of processes shows it.
    (
        umask 077
        case $token in
        -) cat ;;
        @*) cat "${token#@}" ;;
        *) printf '%s\n' "$token" ;;
        esac >"$work/token"
    )
    code=0
    edge-agent enroll --url "$coordinator" --token-file "$work/token" --device "$device" \
        --config $CONFIG --state $STATE --data "$data" || code=$?
    rm -f "$work/token"
    [ $code = 0 ] || fail $code "the device is not enrolled; run this again with a token that holds"
    runuser -u edge-agent -- test -r "$data" ||
        warn "the user edge-agent cannot read $data; give it the right, or set another path in $CONFIG"
fi

# The service.

if [ -z "$start" ]; then
    say "not started; systemctl enable --now $PACKAGE"
elif systemd; then
    systemctl daemon-reload
    systemctl --quiet enable $PACKAGE
    systemctl restart $PACKAGE || fail 1 "the service does not start; journalctl -u $PACKAGE says why"
    say "started; systemctl status $PACKAGE, journalctl -u $PACKAGE"
else
    say "no systemd runs here; start it by:" \
        "setpriv --reuid edge-agent --regid edge-agent --init-groups edge-agent run --config $CONFIG"
fi
