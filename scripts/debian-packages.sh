#!/bin/sh
# Install the Debian packages that hwprune uses, where that is allowed; say which are missing.
set -u
needed="g++ dataset-fashion-mnist tuxpaint-stamps-default llvm
    g++-aarch64-linux-gnu qemu-user-static
    gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm cmake"
missing=""
for package in $needed; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ]; then become=""; elif sudo -n true 2>/dev/null; then become="sudo"; else
    echo "Not installed, and no right to install:$missing (apt-get install$missing)"
    exit 0
fi
$become apt-get update -qq >/dev/null 2>&1
for package in $missing; do
    DEBIAN_FRONTEND=noninteractive $become apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 ||
        echo "Could not install the Debian package $package"
done
exit 0
