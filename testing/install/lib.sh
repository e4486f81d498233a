# Shared by the install scripts; sourced, never run. Needs bash.

# say prints one line of progress.
say() { printf 'install: %s\n' "$*" >&2; }

# die prints why the script cannot go on, and ends it.
die() {
	say "$*"
	exit 1
}

# as_root runs a command as root: directly, or through sudo without a prompt.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	else
		die "root is needed for: $* (become root, or allow sudo without a password)"
	fi
}

# retry runs a command up to four times, with a growing pause: package mirrors
# fail now and then.
retry() {
	local attempt
	for attempt in 1 2 3 4; do
		if "$@"; then
			return 0
		fi
		if [ "$attempt" -lt 4 ]; then
			say "attempt $attempt failed, trying again: $*"
			sleep $((attempt * 3))
		fi
	done
	return 1
}

# cache_dir prints where everything that is not a Debian package is kept. Root
# uses a place that the user postgres can read, since /root is closed to it and
# servers refuse to run as root. testing/harness follows the same rule.
cache_dir() {
	if [ -n "${AGENT_TEST_CACHE:-}" ]; then
		printf '%s\n' "$AGENT_TEST_CACHE"
	elif [ "$(id -u)" -eq 0 ]; then
		printf '/var/cache/walagent\n'
	else
		printf '%s/.cache/walagent\n' "$HOME"
	fi
}
