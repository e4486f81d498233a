package postgres

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// BackupLabel is what a backup_label file, or the .backup file that a finished
// backup leaves in the archive, says (build_backup_content in
// src/backend/access/transam/xlogbackup.c, before 16 in xlog.c). To
// restore, store the file's bytes as they are and do not make them anew.
type BackupLabel struct {
	Start         LSN      // redo pointer: where recovery begins
	StartFile     string   // the segment that holds it
	CheckPoint    LSN      // of the checkpoint record
	Method        string   // "streamed" or "pg_start_backup"
	From          string   // "primary" or "standby"; 13 writes "master", which is read as "primary"
	StartTime     string   // in the server's log_timezone
	Label         string   // as given to the start function
	StartTimeline Timeline // 0 when the line is missing

	IncrementalFrom         LSN      // of PostgreSQL's own incremental backups; otherwise 0
	IncrementalFromTimeline Timeline // the same

	// Only in a .backup file; otherwise zero.
	Stop         LSN
	StopFile     string
	StopTime     string
	StopTimeline Timeline
}

// ParseBackupLabel reads a backup_label or .backup file. Lines that are not
// known are ignored, as the server does. START WAL LOCATION and CHECKPOINT
// LOCATION are needed; a line that appears twice and line ends of other
// systems are refused, since the server would not read the same.
func ParseBackupLabel(data []byte) (BackupLabel, error) {
	var l BackupLabel
	if bytes.IndexByte(data, '\r') >= 0 {
		return l, fmt.Errorf("parse backup label: it has carriage returns: the file was changed after the server made it")
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok {
			continue
		}
		known, err := l.set(key, value)
		if err != nil {
			return BackupLabel{}, fmt.Errorf("parse backup label: %s: %w", key, err)
		}
		if known && seen[key] {
			return BackupLabel{}, fmt.Errorf("parse backup label: %s appears twice", key)
		}
		seen[key] = true
	}
	if !seen["START WAL LOCATION"] || !seen["CHECKPOINT LOCATION"] {
		return BackupLabel{}, fmt.Errorf("parse backup label: START WAL LOCATION or CHECKPOINT LOCATION is missing")
	}
	return l, nil
}

// set stores the value of one line. known tells whether the key means
// something.
func (l *BackupLabel) set(key, value string) (known bool, err error) {
	switch key {
	case "START WAL LOCATION":
		l.Start, l.StartFile, err = parseLocation(value)
	case "STOP WAL LOCATION":
		l.Stop, l.StopFile, err = parseLocation(value)
	case "CHECKPOINT LOCATION":
		l.CheckPoint, err = ParseLSN(value)
	case "BACKUP METHOD":
		l.Method = value
	case "BACKUP FROM":
		l.From = value
		if value == "master" {
			l.From = "primary"
		}
	case "START TIME":
		l.StartTime = value
	case "STOP TIME":
		l.StopTime = value
	case "LABEL":
		l.Label = value
	case "START TIMELINE":
		l.StartTimeline, err = parseLabelTimeline(value)
	case "STOP TIMELINE":
		l.StopTimeline, err = parseLabelTimeline(value)
	case "INCREMENTAL FROM LSN":
		l.IncrementalFrom, err = ParseLSN(value)
	case "INCREMENTAL FROM TLI":
		l.IncrementalFromTimeline, err = parseLabelTimeline(value)
	default:
		return false, nil
	}
	return true, err
}

// parseLocation reads "0/900028 (file 000000010000000000000009)".
func parseLocation(s string) (LSN, string, error) {
	pos, rest, _ := strings.Cut(s, " ")
	lsn, err := ParseLSN(pos)
	if err != nil {
		return 0, "", err
	}
	name, ok := strings.CutPrefix(rest, "(file ")
	name, closed := strings.CutSuffix(name, ")")
	if f, err := ParseWALFile(name); !ok || !closed || err != nil || f.Kind != WALSegment {
		return 0, "", fmt.Errorf("expected an LSN and the name of a WAL segment, like 0/900028 (file 000000010000000000000009), not %q", s)
	}
	return lsn, name, nil
}

func parseLabelTimeline(s string) (Timeline, error) {
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("expected the number of a timeline, not %q", s)
	}
	return Timeline(v), nil
}
