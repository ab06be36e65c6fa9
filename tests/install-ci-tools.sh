#!/usr/bin/env bash
# Install what some tests need beside Python packages: a Chromium for the emulator's page, a Redis
# server for machines that share an allowance, Redis and RabbitMQ as brokers of remote control, curl
# and npm for the clients that others wrote.  What is there already is left alone; as root on Debian
# and its kin the rest is installed, elsewhere it is named.
set -euo pipefail

missing=()
command -v "${CHROMIUM:-chromium}" >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
command -v curl >/dev/null || missing+=(curl)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v rabbitmq-server >/dev/null || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
command -v npm >/dev/null || missing+=(nodejs npm)
[ "${#missing[@]}" -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing: ${missing[*]}. Install it, or run this as root where apt-get can." >&2
    exit 1
fi
# Fonts too: a page without any has no width to test.
case " ${missing[*]} " in *" chromium "*) missing+=(fonts-dejavu-core) ;; esac
# Debian starts a server as soon as it is installed; the tests start their own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends -y "${missing[@]}"
