package restore

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"agent/internal/postgres"
)

const autoConf = "postgresql.auto.conf"

// setting is one line of postgresql.auto.conf.
type setting struct{ name, value string }

// settings writes what PostgreSQL needs to recover by itself: recovery.signal
// and, in postgresql.auto.conf, which wins over postgresql.conf, the command,
// the target and the timeline. All targets are written, those not wanted as
// empty: the server refuses to start with two, and the backup's own files may
// hold one from an earlier recovery.
func (x *run) settings() error {
	t := x.Target
	command, timeline := x.RestoreCommand, x.choice.Timeline
	if t.Kind == TargetImmediate {
		// Of a backup that is kept for its own sake the WAL behind it may have been
		// deleted. Nobody needs it, but with recovery_prefetch, since 15, the server
		// looks ahead for it.
		b := x.choice.Backup
		behind := postgres.Segment{Timeline: b.Timeline, Number: b.StopLSN.LastSegment(b.SegmentSize) + 1}
		command, timeline = command+" --end-before "+behind.Name(b.SegmentSize), b.Timeline
	}
	set := []setting{
		{"restore_command", command},
		{"recovery_target", ""},
		{"recovery_target_time", ""},
		{"recovery_target_lsn", ""},
		{"recovery_target_xid", ""},
		{"recovery_target_name", ""},
		{"recovery_target_inclusive", "on"},
		{"recovery_target_action", "pause"},
		// A number, since "latest" might follow a timeline that somebody
		// starts while this server recovers.
		{"recovery_target_timeline", timelineSetting(timeline)},
		// Of a standby: a recovery shall not lag behind the archive, nor clear an
		// archive of what another standby has replayed.
		{"recovery_min_apply_delay", "0"},
		{"archive_cleanup_command", ""},
	}
	// The wanted one goes behind the others: the server applies the settings in
	// the order of the file, and an empty target after one that is set is a
	// second target to it (assign_recovery_target_* in
	// src/backend/access/transam/xlogrecovery.c).
	put := func(name, value string) {
		set = slices.DeleteFunc(set, func(s setting) bool { return s.name == name })
		set = append(set, setting{name, value})
	}
	switch t.Kind {
	case TargetTime:
		put("recovery_target_time", t.Time.UTC().Format("2006-01-02 15:04:05.999999+00"))
	case TargetLSN:
		put("recovery_target_lsn", t.LSN.String())
	case TargetXID:
		put("recovery_target_xid", strconv.FormatUint(uint64(t.XID), 10))
	case TargetName:
		put("recovery_target_name", t.Name)
	case TargetImmediate:
		put("recovery_target", "immediate")
	case TargetEnd:
	}
	if t.Exclusive {
		put("recovery_target_inclusive", "off")
	}
	if t.Action != "" {
		put("recovery_target_action", t.Action)
	}
	if x.archivingOff() {
		set = append(set, setting{"archive_mode", "off"})
	}
	body, err := os.ReadFile(x.dest.pathOf(autoConf))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return x.dest.explain(err)
	}
	body = rewriteSettings(body, set, string(x.choice.Backup.Name), x.Now())
	if err := x.dest.writeFile(autoConf, uint32(x.dest.fileMode()), body); err != nil {
		return err
	}
	return x.dest.writeFile("recovery.signal", uint32(x.dest.fileMode()), nil)
}

func timelineSetting(t postgres.Timeline) string { return strconv.FormatUint(uint64(t), 10) }

// settingLine finds the name in a line of a configuration file.
var settingLine = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(=|\s)`)

// rewriteSettings replaces the settings in a configuration file, keeping every
// other line.
func rewriteSettings(old []byte, set []setting, backup string, now time.Time) []byte {
	ours := make(map[string]bool, len(set))
	for _, s := range set {
		ours[s.name] = true
	}
	var out strings.Builder
	for line := range strings.Lines(string(old)) {
		m := settingLine.FindStringSubmatch(line)
		if m != nil && ours[strings.ToLower(m[1])] || strings.HasPrefix(line, restoredBy) {
			continue
		}
		out.WriteString(line)
		if !strings.HasSuffix(line, "\n") {
			out.WriteByte('\n')
		}
	}
	out.WriteString(restoredBy + backup + " at " + now.UTC().Format(time.RFC3339) + "\n")
	for _, s := range set {
		out.WriteString(s.name + " = " + quote(s.value) + "\n")
	}
	return []byte(out.String())
}

const restoredBy = "# restored by agent backup-fetch from backup "

// quote writes a value as the server's configuration files want it
// (src/backend/utils/misc/guc-file.l).
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`).Replace(s) + "'"
}
