#!/bin/sh
# Install the Debian packages that are missing; says which and what for.
# NO_INSTALL=1: only say. Does nothing when all are there.
set -e
want='
gcc:the_compiler
make:the_build
pkg-config:the_build
liburing-dev:io_uring,_pages_to_disk_and_back
libnuma-dev:placement_of_memory
libinih-dev:the_configuration_file
libjansson-dev:JSON
libmicrohttpd-dev:metrics_over_HTTP
libsodium-dev:hashes
libseccomp-dev:the_sandbox
libcap-dev:privileges
libdnnl-dev:oneDNN,_the_baseline_of_kvbench
check:the_test_library
libsubunit-dev:the_test_library
'
missing=''
for line in $want; do
	pkg=${line%%:*}
	if ! dpkg-query -W -f '${Status}' "$pkg" 2>/dev/null |
		grep -q 'ok installed'; then
		echo "missing: $pkg ($(echo "${line#*:}" | tr _ ' '))"
		missing="$missing $pkg"
	fi
done
[ -n "$missing" ] || exit 0
if [ "${NO_INSTALL:-0}" = 1 ]; then
	echo "install them with: apt-get install$missing"
	exit 1
fi
sudo=''
[ "$(id -u)" = 0 ] || sudo=sudo
echo "installing:$missing"
$sudo apt-get update -q
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -q -y --no-install-recommends $missing
