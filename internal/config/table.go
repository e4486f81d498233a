package config

import (
	"log/slog"
	"strconv"
	"strings"
	"time"
)

const sizeSyntax = "a whole number of bytes, or with a unit kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024)"

// auto is the value that leaves a decision to the agent.
const auto = "auto"

// lowestRate keeps a forgotten unit ("50" for 50MB) from stopping all work.
const lowestRate = 10_000

// lowestBacklog keeps a forgotten unit from throwing WAL away: it is a handful of
// segments.
const lowestBacklog = 64 << 20

// The most that rules of retention can ask for.
const (
	maxKept     = 10_000
	longestKept = 36_500 * day
)

// table is the option table: every setting, once, with all that is known
// of it. Its order is that of the documentation.
func table() []option {
	recipients := "age recipients (age1..., age1pq1..., ssh-ed25519 ..., ssh-rsa ...) separated by commas, or an absolute path of a file with one per line; in YAML also a list"
	rate := "0 (unlimited), or at least 10kB: " + sizeSyntax
	rows := []option{
		{
			Option: Option{
				Key: keyRepository, Env: "AGENT_REPOSITORY", Flag: "repository", Type: "URL",
				Allowed: urlSyntax + "; or a name of the list repositories of a lower layer",
				Help:    "The repository to which WAL and backups go and from which they are restored. It replaces a list of a lower layer; the name or URL of an item there takes that item alone.",
			},
			mask: maskRepository,
			show: func(c Config) string { return maskRepository(c.Repository) },
		},
		{
			Option: Option{
				Key: keyRepositories, Env: "AGENT_REPOSITORIES", Type: "LIST",
				Allowed: "a YAML list of mappings with the keys of an item; in the environment the same as YAML or JSON on one line",
				Help:    "Several repositories at once, instead of repository.",
			},
			multiline: true,
			mask:      hide,
			show:      func(Config) string { return "" },
		},
		{
			Option: Option{
				Key: "data_directory", Env: "PGDATA", Flag: "pgdata", Type: "PATH",
				Allowed: "the path of a directory",
				Help:    "The data directory of the PostgreSQL server.",
			},
			parse: storePath(func(c *Config) *string { return &c.DataDirectory }, "the data directory"),
			show:  func(c Config) string { return c.DataDirectory },
		},
		{
			Option: Option{
				Key: "connection", Env: "AGENT_CONNECTION", Flag: "connection", Type: "CONNINFO",
				Allowed: "a libpq connection string (host=/run/postgresql user=backup) or URL (postgresql://...)",
				Help:    "How to connect to the server; what it does not say comes from PGHOST and the other libpq variables, service files and .pgpass.",
			},
			multiline: true,
			mask:      MaskConnection,
			parse:     storeText(func(c *Config) *string { return &c.Connection }),
			show:      func(c Config) string { return MaskConnection(c.Connection) },
		},
		{
			Option: Option{
				Key: "primary_conninfo", Env: "AGENT_PRIMARY_CONNINFO", Flag: "primary", Type: "CONNINFO", Default: "that of the standby",
				Allowed: "a libpq connection string (host=db1,db2 user=backup) or URL (postgresql://...)",
				Help:    "How backup-push on a standby connects to the primary, to run pg_switch_wal there; of several hosts it takes the primary.",
			},
			multiline: true,
			mask:      MaskConnection,
			parse:     storeText(func(c *Config) *string { return &c.PrimaryConnInfo }),
			show:      func(c Config) string { return MaskConnection(c.PrimaryConnInfo) },
		},
		{
			Option: Option{
				Key: "state_dir", Env: "AGENT_STATE_DIR", Flag: "state-dir", Type: "PATH",
				Default: "/var/lib/agent if it exists, else $XDG_STATE_HOME/agent, else $HOME/.local/state/agent; where that cannot be written, .local/state/agent in the home of the user who runs it",
				Allowed: "an absolute path",
				Help:    "Where the agent keeps local state; outside the data directory.",
			},
			parse: func(c *Config, v value, home string) (err error) {
				c.StateDir, err = absolute(v.text(), home)
				return err
			},
			show: func(c Config) string { return c.StateDir },
		},
		{
			Option: Option{
				Key: "compression", Env: "AGENT_COMPRESSION", Flag: "compression", Type: "METHOD[:LEVEL]", Default: "zstd",
				Allowed: "zstd, zstd:1 to zstd:22, lz4, lz4:1 to lz4:12, none",
				Values:  []string{"zstd", "lz4", "none"},
				Help:    "How new objects are compressed; any object can be read whatever this says.",
			},
			fallback: fixed("zstd"),
			parse: func(c *Config, v value, _ string) (err error) {
				c.Compression, err = compression(v.text())
				return err
			},
			show: func(c Config) string { return c.Compression },
		},
		{
			Option: Option{
				Key: "recipients", Env: "AGENT_RECIPIENTS", Flag: "recipients", Type: "LIST",
				Allowed: recipients,
				Help:    "The public keys for which objects are encrypted; without any, objects are stored unencrypted.",
			},
			list: true, multiline: true,
			parse: storeRecipients(func(c *Config) *[]string { return &c.Recipients }),
			show:  func(c Config) string { return strings.Join(c.Recipients, ",") },
		},
		{
			Option: Option{
				Key: "recipients_wal", Env: "AGENT_RECIPIENTS_WAL", Flag: "recipients-wal", Type: "LIST", Default: "as recipients",
				Allowed: recipients,
				Help:    "The public keys for WAL, where they differ, so that a standby can read WAL but no backup.",
			},
			list: true, multiline: true,
			parse: storeRecipients(func(c *Config) *[]string { return &c.RecipientsWAL }),
			show:  func(c Config) string { return strings.Join(c.RecipientsWAL, ",") },
		},
		{
			Option: Option{
				Key: "recipients_meta", Env: "AGENT_RECIPIENTS_META", Flag: "recipients-meta", Type: "LIST", Default: "as recipients",
				Allowed: recipients,
				Help:    "The public keys for manifests and WAL summaries, where they differ, so that a host can continue another host's backups without reading the data.",
			},
			list: true, multiline: true,
			parse: storeRecipients(func(c *Config) *[]string { return &c.RecipientsMeta }),
			show:  func(c Config) string { return strings.Join(c.RecipientsMeta, ",") },
		},
		{
			Option: Option{
				Key: "identity_file", Env: "AGENT_IDENTITY_FILE", Flag: "identity-file", Type: "PATH",
				Allowed: "the path of a file; absolute unless it is given as a flag",
				Help:    "A file with the private keys (age identities) that open objects; only reading needs it.",
			},
			parse: storeFile(func(c *Config) *string { return &c.IdentityFile }),
			show:  func(c Config) string { return c.IdentityFile },
		},
		{
			Option: Option{
				Key: "identity_command", Env: "AGENT_IDENTITY_COMMAND", Flag: "identity-command", Type: "COMMAND",
				Allowed: "a command for sh -c, with no secret in it",
				Help:    "A command that prints the private keys, run when they are first needed.",
			},
			multiline: true,
			parse:     storeText(func(c *Config) *string { return &c.IdentityCommand }),
			show:      func(c Config) string { return c.IdentityCommand },
		},
		{
			Option: Option{
				Key: "identity", Env: "AGENT_IDENTITY", Type: "IDENTITY",
				Allowed: "age identities, one per line; only in the environment",
				Help:    "The private keys themselves.",
				Secret:  true, EnvOnly: true,
			},
			multiline: true,
			parse:     storeText(func(c *Config) *string { return &c.Identity }),
			show:      func(c Config) string { return hide(c.Identity) },
		},
		{
			Option: Option{
				Key: "sftp_password", Env: "AGENT_SFTP_PASSWORD", Type: "TEXT",
				Allowed: "a password; only in the environment",
				Help:    "The password for SFTP repositories, where no key is accepted.",
				Secret:  true, EnvOnly: true,
			},
			multiline: true,
			parse:     storeText(func(c *Config) *string { return &c.SFTPPassword }),
			show:      func(c Config) string { return hide(c.SFTPPassword) },
		},
		{
			Option: Option{
				Key: "sftp_passphrase", Env: "AGENT_SFTP_PASSPHRASE", Type: "TEXT",
				Allowed: "a passphrase; only in the environment",
				Help:    "The passphrase of an encrypted SSH key.",
				Secret:  true, EnvOnly: true,
			},
			multiline: true,
			parse:     storeText(func(c *Config) *string { return &c.SFTPPassphrase }),
			show:      func(c Config) string { return hide(c.SFTPPassphrase) },
		},
		{
			Option: Option{
				Key: "concurrency", Env: "AGENT_CONCURRENCY", Flag: "concurrency", Type: "N",
				Default: "the number of CPUs, but at least 2 and at most 8",
				Allowed: "1 to 64",
				Help:    "How many files and objects are worked on at a time; it also bounds memory.",
			},
			fallback: func(in Input) string { return strconv.Itoa(max(2, min(in.NumCPU, 8))) },
			parse:    storeInt(func(c *Config) *int { return &c.Concurrency }, 1, maxConcurrency),
			show:     func(c Config) string { return strconv.Itoa(c.Concurrency) },
		},
		{
			Option: Option{
				Key: "bandwidth", Env: "AGENT_BANDWIDTH", Flag: "bandwidth", Type: "SIZE", Default: "0",
				Allowed: rate,
				Help:    "The most bytes per second to the repository, and as many from it.",
			},
			fallback: fixed("0"),
			parse:    storeRate(func(c *Config) *int64 { return &c.Bandwidth }),
			show:     func(c Config) string { return FormatSize(c.Bandwidth) },
		},
		{
			Option: Option{
				Key: "read_rate", Env: "AGENT_READ_RATE", Flag: "read-rate", Type: "SIZE", Default: "0",
				Allowed: rate,
				Help:    "The most bytes per second that backup-push reads from the data directory.",
			},
			fallback: fixed("0"),
			parse:    storeRate(func(c *Config) *int64 { return &c.ReadRate }),
			show:     func(c Config) string { return FormatSize(c.ReadRate) },
		},
		{
			Option: Option{
				Key: "checkpoint", Env: "AGENT_CHECKPOINT", Flag: "checkpoint", Type: "MODE", Default: CheckpointFast,
				Allowed: "fast, spread", Values: []string{CheckpointFast, CheckpointSpread},
				Help: "Whether the checkpoint with which a backup begins runs at once, or is spread like the server's own.",
			},
			fallback: fixed(CheckpointFast),
			parse:    storeChoice(func(c *Config) *string { return &c.Checkpoint }, CheckpointFast, CheckpointSpread),
			show:     func(c Config) string { return c.Checkpoint },
		},
		{
			Option: Option{
				Key: "wal_timeout", Env: "AGENT_WAL_TIMEOUT", Flag: "wal-timeout", Type: "DURATION", Default: "10m",
				Allowed: "a duration of at least 1s, such as 90s, 10m, 1h30m, 2d",
				Help:    "How long backup-push waits until the WAL that the backup needs is in the repository.",
			},
			fallback: fixed("10m"),
			parse:    storeDuration(func(c *Config) *time.Duration { return &c.WALTimeout }, time.Second, longest),
			show:     func(c Config) string { return FormatDuration(c.WALTimeout) },
		},
		{
			Option: Option{
				Key: "timeout", Env: "AGENT_TIMEOUT", Flag: "timeout", Type: "DURATION", Default: auto,
				Allowed: "auto (60s and the size of the file at 1 MB/s), or a duration of at least 1s, such as 90s, 10m, 1h30m, 2d",
				Help:    "How long one wal-push may take in all, before it fails and PostgreSQL calls it again.",
			},
			fallback: fixed(auto),
			parse: func(c *Config, v value, home string) error {
				if v.text() == auto {
					c.Timeout = 0
					return nil
				}
				return storeDuration(func(c *Config) *time.Duration { return &c.Timeout }, time.Second, longest)(c, v, home)
			},
			show: func(c Config) string {
				if c.Timeout == 0 {
					return auto
				}
				return FormatDuration(c.Timeout)
			},
		},
		{
			Option: Option{
				Key: "max_backlog", Env: "AGENT_MAX_BACKLOG", Flag: "max-backlog", Type: "SIZE", Default: "0",
				Allowed: "0 (never), or at least 64MiB: " + sizeSyntax,
				Help:    "Dangerous: how much WAL may wait in pg_wal before wal-push drops it, to save the server from a full disk when the repository takes no WAL. What is dropped is recorded there; no recovery goes past it, and a new backup is needed.",
			},
			fallback: fixed("0"),
			parse:    storeBacklog(func(c *Config) *int64 { return &c.MaxBacklog }),
			show:     func(c Config) string { return FormatSize(c.MaxBacklog) },
		},
		{
			Option: Option{
				Key: "standby_on_outage", Env: "AGENT_STANDBY_ON_OUTAGE", Flag: "standby-on-outage", Type: "MODE", Default: OutageWait,
				Allowed: "wait, notfound, stop", Values: []string{OutageWait, OutageNotFound, OutageStop},
				Help: "What wal-fetch does on a standby when the repository cannot be reached: wait for it, answer \"not found\" so that the standby streams, or stop the server.",
			},
			fallback: fixed(OutageWait),
			parse:    storeChoice(func(c *Config) *string { return &c.StandbyOnOutage }, OutageWait, OutageNotFound, OutageStop),
			show:     func(c Config) string { return c.StandbyOnOutage },
		},
		{
			Option: Option{
				Key: "max_incrementals", Env: "AGENT_MAX_INCREMENTALS", Flag: "max-incrementals", Type: "N", Default: "30",
				Allowed: "0 to 1000",
				Help:    "How many incremental backups may follow a full one; 0 makes every backup full.",
			},
			fallback: fixed("30"),
			parse:    storeInt(func(c *Config) *int { return &c.MaxIncrementals }, 0, maxIncrementals),
			show:     func(c Config) string { return strconv.Itoa(c.MaxIncrementals) },
		},
		{
			Option: Option{
				Key: "full_every", Env: "AGENT_FULL_EVERY", Flag: "full-every", Type: "DURATION", Default: "7d",
				Allowed: "a duration of 1h to 3650d, such as 36h, 7d",
				Help:    "The longest time from a full backup to the last incremental one that builds on it; then backup-push makes a full one again. It also decides by how much locks (immutable) are longer than what they promise.",
			},
			fallback: fixed("7d"),
			parse:    storeDuration(func(c *Config) *time.Duration { return &c.FullEvery }, minFullEvery, maxFullEvery),
			show:     func(c Config) string { return FormatDuration(c.FullEvery) },
		},
		{
			Option: Option{
				Key: "keep_window", Env: "AGENT_KEEP_WINDOW", Flag: "keep-window", Type: "DURATION", Default: "0s",
				Allowed: "0s (no such rule), or a duration of 1h to 36500d, such as 36h, 7d",
				Help:    "agent delete expire: any moment of this time stays recoverable.",
			},
			fallback: fixed("0s"),
			parse: func(c *Config, v value, home string) error {
				if v.text() == "0s" || v.text() == "0" {
					c.Keep.Window = 0
					return nil
				}
				return storeDuration(func(c *Config) *time.Duration { return &c.Keep.Window }, time.Hour, longestKept)(c, v, home)
			},
			show: func(c Config) string { return FormatDuration(c.Keep.Window) },
		},
		kept("keep_full", "how many of the newest full backups stay, with all that came after the oldest of these.", func(c *Config) *int { return &c.Keep.Full }),
		kept("keep_daily", "of how many days the last backup stays, counting those days that have one (UTC).", func(c *Config) *int { return &c.Keep.Daily }),
		kept("keep_weekly", "of how many weeks the last backup stays, counting those weeks that have one (UTC).", func(c *Config) *int { return &c.Keep.Weekly }),
		kept("keep_monthly", "of how many months the last backup stays, counting those months that have one (UTC).", func(c *Config) *int { return &c.Keep.Monthly }),
		kept("keep_yearly", "of how many years the last backup stays, counting those years that have one (UTC).", func(c *Config) *int { return &c.Keep.Yearly }),
		kept("min_backups", "how many of the newest backups stay whatever the other rules say.", func(c *Config) *int { return &c.Keep.Least }),
		{
			Option: Option{
				Key: "label", Env: "AGENT_LABEL", Flag: "label", Type: "TEXT",
				Allowed: "one line of at most 1024 bytes",
				Help:    "A note that is kept with the backup and in its backup_label.",
			},
			parse: storeLabel(func(c *Config) *string { return &c.Label }),
			show:  func(c Config) string { return c.Label },
		},
		{
			Option: Option{
				Key: "log_level", Env: "AGENT_LOG_LEVEL", Flag: "log-level", Type: "LEVEL", Default: "info",
				Allowed: "debug, info, warn, error", Values: []string{"debug", "info", "warn", "error"},
				Help: "The least important messages that are logged.",
			},
			fallback: fixed("info"),
			parse:    storeLevel(func(c *Config) *slog.Level { return &c.LogLevel }),
			show:     func(c Config) string { return strings.ToLower(c.LogLevel.String()) },
		},
		{
			Option: Option{
				Key: "log_format", Env: "AGENT_LOG_FORMAT", Flag: "log-format", Type: "FORMAT", Default: LogText,
				Allowed: "text, json", Values: []string{LogText, LogJSON},
				Help: "How messages are written to standard error.",
			},
			fallback: fixed(LogText),
			parse:    storeChoice(func(c *Config) *string { return &c.LogFormat }, LogText, LogJSON),
			show:     func(c Config) string { return c.LogFormat },
		},
	}
	for _, o := range repositoryTable() {
		rows = append(rows, o.top())
	}
	return rows
}

// kept is a rule of retention that counts.
func kept(key, help string, field func(*Config) *int) option {
	return option{
		Option: Option{
			Key: key, Env: "AGENT_" + strings.ToUpper(key), Flag: strings.ReplaceAll(key, "_", "-"), Type: "N", Default: "0",
			Allowed: "0 to " + strconv.Itoa(maxKept),
			Help:    "agent delete expire: " + help,
		},
		fallback: fixed("0"),
		parse:    storeInt(field, 0, maxKept),
		show:     func(c Config) string { return strconv.Itoa(*field(&c)) },
	}
}
