package postgres

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseBackupLabel(t *testing.T) {
	want := BackupLabel{
		Start: 0x900028, StartFile: "000000010000000000000009", CheckPoint: 0x900060, Method: "streamed", From: "primary",
		StartTime: "2026-11-20 11:38:20 UTC", Label: "pg_basebackup base backup", StartTimeline: 1,
	}
	got, err := ParseBackupLabel(load(t, "timeline", "backup_label"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	want.Stop, want.StopFile, want.StopTime, want.StopTimeline = 0x900100, want.StartFile, want.StartTime, 1
	got, err = ParseBackupLabel(load(t, "timeline", "000000010000000000000009.00000028.backup"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	const start = "START WAL LOCATION: 0/900028 (file 000000010000000000000009)\nCHECKPOINT LOCATION: 0/900060\n"
	got, err = ParseBackupLabel([]byte(start + "LABEL: a: b\nSOMETHING NEW: 1\nINCREMENTAL FROM LSN: 0/700028\nINCREMENTAL FROM TLI: 2\nno colon\n"))
	if err != nil || got.Label != "a: b" || got.IncrementalFrom != 0x700028 || got.IncrementalFromTimeline != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	for what, text := range map[string]string{
		"empty":          "",
		"no checkpoint":  "START WAL LOCATION: 0/900028 (file 000000010000000000000009)\n",
		"no start":       "CHECKPOINT LOCATION: 0/900060\n",
		"line ends":      strings.ReplaceAll(start, "\n", "\r\n"),
		"twice":          start + "LABEL: x\nSTART TIMELINE: 9\nSTART TIMELINE: 1\n",
		"no file":        "START WAL LOCATION: 0/900028\nCHECKPOINT LOCATION: 0/900060\n",
		"bad file":       "START WAL LOCATION: 0/900028 (file 00000001.history)\nCHECKPOINT LOCATION: 0/900060\n",
		"bad LSN":        "START WAL LOCATION: 900028 (file 000000010000000000000009)\nCHECKPOINT LOCATION: 0/900060\n",
		"bad checkpoint": "START WAL LOCATION: 0/900028 (file 000000010000000000000009)\nCHECKPOINT LOCATION: x\n",
		"timeline":       start + "START TIMELINE: 0\n",
	} {
		if l, err := ParseBackupLabel([]byte(text)); err == nil {
			t.Errorf("%s: %+v; want an error", what, l)
		}
	}
}

func FuzzParseBackupLabel(f *testing.F) {
	f.Add(load(f, "timeline", "backup_label"))
	f.Add(load(f, "timeline", "000000010000000000000009.00000028.backup"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := ParseBackupLabel(data); err == nil {
			if _, err := ParseWALFile(l.StartFile); err != nil {
				t.Fatal(err)
			}
		} else if l != (BackupLabel{}) {
			t.Fatalf("%+v with %v", l, err)
		}
	})
}

func TestTablespaceMap(t *testing.T) {
	spaces := []Tablespace{{16390, "/data/a b"}, {16391, "/line\nfeed\\and\rreturn"}, {16392, "pg_tblspc/16392"}, {16393, ""}}
	const text = "16390 /data/a b\n16391 /line\\\nfeed\\\\and\\\rreturn\n"
	if got := string(FormatTablespaceMap(spaces)); got != text {
		t.Errorf("%q, want %q", got, text)
	}
	got, err := ParseTablespaceMap([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(spaces[:2], got); d != "" {
		t.Error(d)
	}
	if FormatTablespaceMap(spaces[2:]) != nil {
		t.Error("in-place tablespaces need no file")
	}
	for _, text := range []string{"16390\n", "16390 \n", "\n", " /x\n", "x /y\n", "0 /x\n", "16390 /x", "16390 /x\\", "16390 /x\r\n", "1 /a\n1 /b\n", "4294967296 /x\n", "1 /x\n\n"} {
		if got, err := ParseTablespaceMap([]byte(text)); err == nil {
			t.Errorf("%q: %v; want an error", text, got)
		}
	}
	if got, err := ParseTablespaceMap(nil); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTablespaceMapRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var spaces []Tablespace
		for i, path := range rapid.SliceOf(rapid.StringOf(rapid.RuneFrom([]rune("a/ \\\n\rä")))).Draw(t, "paths") {
			spaces = append(spaces, Tablespace{OID: uint32(16384 + i), Location: "/" + path})
		}
		got, err := ParseTablespaceMap(FormatTablespaceMap(spaces))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(spaces, got); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzParseTablespaceMap(f *testing.F) {
	f.Add([]byte("16390 /data/a b\n16391 /line\\\nfeed\\\\\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		spaces, err := ParseTablespaceMap(data)
		if err != nil {
			return
		}
		for _, s := range spaces {
			if s.OID == 0 || s.Location == "" {
				t.Fatalf("%+v", spaces)
			}
		}
	})
}
