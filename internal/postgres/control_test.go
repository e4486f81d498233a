package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
)

// controldata reads what pg_controldata printed.
func controldata(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(string(load(t, dir, "pg_controldata.txt"))) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("%s: %q", dir, line)
		}
		out[key] = strings.TrimSpace(value)
	}
	return out
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func TestParseControl(t *testing.T) {
	for major := MinMajor; major <= MaxMajor; major++ {
		dir := fmt.Sprintf("pg%d", major)
		c, err := ParseControl(load(t, dir, "pg_control.zst"))
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		if c.Major != major {
			t.Errorf("%s: major %d", dir, c.Major)
		}
		num := func(v any) string { return fmt.Sprint(v) }
		got := map[string]string{
			"pg_control version number":            num(c.ControlVersion),
			"Catalog version number":               num(c.CatalogVersion),
			"Database system identifier":           num(c.SystemIdentifier),
			"Database cluster state":               c.State.String(),
			"pg_control last modified":             c.Time.Format(time.ANSIC),
			"Latest checkpoint location":           c.CheckPoint.String(),
			"Latest checkpoint's REDO location":    c.Redo.String(),
			"Latest checkpoint's REDO WAL file":    SegmentOf(c.Timeline, c.Redo, c.WALSegmentSize).Name(c.WALSegmentSize),
			"Latest checkpoint's TimeLineID":       num(uint32(c.Timeline)),
			"Latest checkpoint's PrevTimeLineID":   num(uint32(c.PrevTimeline)),
			"Latest checkpoint's full_page_writes": onOff(c.FullPageWrites),
			"Latest checkpoint's NextXID":          fmt.Sprintf("%d:%d", c.NextXID>>32, uint32(c.NextXID)),
			"Latest checkpoint's NextOID":          num(c.NextOID),
			"Time of latest checkpoint":            c.CheckPointTime.Format(time.ANSIC),
			"Fake LSN counter for unlogged rels":   c.UnloggedLSN.String(),
			"Minimum recovery ending location":     c.MinRecoveryPoint.String(),
			"Min recovery ending loc's timeline":   num(uint32(c.MinRecoveryTimeline)),
			"Backup start location":                c.BackupStart.String(),
			"Backup end location":                  c.BackupEnd.String(),
			"wal_level setting":                    c.WALLevel.String(),
			"wal_log_hints setting":                onOff(c.WALLogHints),
			"max_connections setting":              num(c.MaxConnections),
			"max_worker_processes setting":         num(c.MaxWorkerProcesses),
			"max_wal_senders setting":              num(c.MaxWALSenders),
			"max_prepared_xacts setting":           num(c.MaxPreparedXacts),
			"max_locks_per_xact setting":           num(c.MaxLocksPerXact),
			"track_commit_timestamp setting":       onOff(c.TrackCommitTimestamp),
			"Database block size":                  num(c.BlockSize),
			"Blocks per segment of large relation": num(c.RelSegBlocks),
			"WAL block size":                       num(c.WALBlockSize),
			"Bytes per WAL segment":                num(uint32(c.WALSegmentSize)),
			"Data page checksum version":           num(c.DataChecksumVersion),
		}
		want := controldata(t, dir)
		for key := range want {
			if _, ok := got[key]; !ok {
				delete(want, key)
			}
		}
		// pg_controldata pads days with zeros where ANSIC has blanks.
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", dir, d)
		}
		if !c.DataChecksums() || c.BackupEndRequired {
			t.Errorf("%s: checksums %v, end required %v", dir, c.DataChecksums(), c.BackupEndRequired)
		}
	}
}

// seal puts a right checksum onto changed bytes.
func seal(b []byte, at int) []byte {
	binary.LittleEndian.PutUint32(b[at:], crc32.Checksum(b[:at], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestParseControlRefuses(t *testing.T) {
	good := load(t, "pg15", "pg_control.zst")
	put32 := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], v)
		return seal(b, 288)
	}
	for _, c := range []struct {
		what string
		b    []byte
		text string
	}{
		{"nothing", nil, "0 bytes"},
		{"cut", good[:200], "200 bytes"},
		{"zeros", make([]byte, 8192), "version 0"},
		{"older", put32(8, 1201), "version 1201"},
		{"newer", put32(8, 1902), "version 1902: its layout is of no supported PostgreSQL major"},
		{"big-endian", put32(8, 0x14050000), "big-endian"},
		{"alignment", put32(204, 4), "another architecture"},
		{"floats", put32(208, 1), "another architecture"},
		{"block size", put32(216, 8191), "block sizes"},
		{"segment blocks", put32(220, 0), "block sizes"},
		{"WAL block size", put32(224, 0), "block sizes"},
		{"segment size", put32(228, 0), "WAL segment size of 0"},
	} {
		got, err := ParseControl(c.b)
		if err == nil || got != nil || errors.Is(err, ErrControlCRC) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, %v; want %q", c.what, got, err, c.text)
		}
	}
	for at := range 292 {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		if _, err := ParseControl(b); err == nil || at != 8 && at != 9 && at != 10 && at != 11 && !errors.Is(err, ErrControlCRC) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}

func TestParseControlUnknownCatalog(t *testing.T) {
	b := load(t, "pg15", "pg_control.zst")
	binary.LittleEndian.PutUint32(b[12:], 202209999)
	if c, err := ParseControl(seal(b, 288)); err != nil || c.Major != 0 {
		t.Fatalf("%+v, %v; want major 0", c, err)
	}
}

func controlDir(t *testing.T, content []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "global"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ControlPath), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReadControl(t *testing.T) {
	good := load(t, "pg17", "pg_control.zst")
	c, raw, err := ReadControl(t.Context(), controlDir(t, good))
	if err != nil || !bytes.Equal(raw, good) || c.Major != 17 {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, _, err := ReadControl(t.Context(), t.TempDir()); !errors.Is(err, fs.ErrNotExist) || errs.HintOf(err) == "" {
		t.Errorf("no file: %v", err)
	}
	if _, _, err := ReadControl(t.Context(), controlDir(t, good[:8191])); errs.KindOf(err) != errs.Damaged {
		t.Errorf("a short file: %v", err)
	}
	if _, _, err := ReadControl(t.Context(), controlDir(t, make([]byte, 8192))); errs.KindOf(err) != errs.Server {
		t.Errorf("zeros: %v", err)
	}
}

func TestReadControlTorn(t *testing.T) {
	good := load(t, "pg17", "pg_control.zst")
	torn := bytes.Clone(good)
	torn[40] ^= 1
	reads := 0
	tornUntil := func(n int) func() ([]byte, error) {
		reads = 0
		return func() ([]byte, error) {
			if reads++; reads < n {
				return torn, nil
			}
			return good, nil
		}
	}
	for _, n := range []int{1, 2, 10} {
		c, raw, err := readControl(t.Context(), tornUntil(n), time.Nanosecond)
		if err != nil || reads != n || !bytes.Equal(raw, good) || c.Major != 17 {
			t.Fatalf("right at read %d: %d reads, %v", n, reads, err)
		}
	}
	if _, _, err := readControl(t.Context(), tornUntil(11), time.Nanosecond); !errors.Is(err, ErrControlCRC) || reads != 10 {
		t.Fatalf("torn for good: %d reads, %v", reads, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := readControl(ctx, tornUntil(11), time.Hour); !errors.Is(err, context.Canceled) || reads != 1 {
		t.Fatalf("cancelled: %d reads, %v", reads, err)
	}
}

func FuzzParseControl(f *testing.F) {
	for _, major := range []int{13, 17, 18} {
		f.Add(load(f, "pg"+strconv.Itoa(major), "pg_control.zst")[:296], true)
	}
	f.Fuzz(func(t *testing.T, b []byte, right bool) {
		if right && len(b) >= 296 {
			at := 288
			if binary.LittleEndian.Uint32(b[8:]) == 1800 {
				at = 292
			}
			b = seal(bytes.Clone(b), at)
		}
		c, err := ParseControl(b)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err == nil && (!c.WALSegmentSize.Valid() || c.RelSegBlocks == 0 || c.BlockSize == 0) {
			t.Fatalf("%+v", c)
		}
	})
}
