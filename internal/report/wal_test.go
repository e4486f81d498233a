package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/archive"
	"agent/internal/backlog"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// exampleSurvey has two timelines, a hole, dropped segments and two places.
func exampleSurvey(t testing.TB) *archive.Survey {
	t.Helper()
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	ranges := func(places ...[4]int) (all []repo.WALRange) {
		for _, r := range places {
			tli := postgres.Timeline(r[0])
			all = append(all, repo.WALRange{
				First: postgres.Segment{Timeline: tli, Number: uint64(r[1])}, Last: postgres.Segment{Timeline: tli, Number: uint64(r[2])},
				Bytes: int64(r[2]-r[1]+1) << 20, Since: at.Add(time.Duration(r[1]) * time.Hour), Until: at.Add(time.Duration(r[3]) * time.Hour),
			})
		}
		return all
	}
	h, err := postgres.ParseHistory(2, []byte("1\t0/9000100\tx\n"))
	if err != nil {
		t.Fatal(err)
	}
	all := ranges([4]int{1, 2, 4, 4}, [4]int{1, 6, 8, 8}, [4]int{2, 9, 9, 9})
	return &archive.Survey{
		Cluster: 7, Size: 16 << 20, Histories: map[postgres.Timeline]postgres.History{2: h},
		Backups: []*repo.Backup{
			{Name: "20261120T101530Z-k3v7qa", Timeline: 1, SegmentSize: 16 << 20, StartSegment: "000000010000000000000006", StopSegment: "000000010000000000000007", StopLSN: 0x7000100},
			{Name: "20261119T101530Z-aaaaaa", Timeline: 1, SegmentSize: 16 << 20, StartSegment: "000000010000000000000004", StopSegment: "000000010000000000000005", StopLSN: 0x5000100},
		},
		Scan: &repo.WALScan{Ranges: all, Places: []repo.WALHeld{
			{Name: "main", URL: "file:///b", Required: true, Ranges: all, Histories: []postgres.Timeline{2}, Dropped: []repo.DroppedRange{{First: "00000002000000000000000A", Last: "00000002000000000000000B", At: at}}},
			{Name: "second", URL: "s3://b", Ranges: ranges([4]int{1, 2, 4, 4}, [4]int{1, 7, 7, 7})},
			{Name: "third", URL: "s3://c", Err: errors.New("it is\naway")},
		}},
	}
}

func exampleBacklog() backlog.Backlog {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	return backlog.Backlog{At: at, Oldest: at.Add(-2 * time.Hour), Files: 4, Segments: 3, Bytes: 48 << 20, Made: 2 << 20, Archived: 1 << 20, Free: 1 << 30}
}

func TestWALTable(t *testing.T) {
	waiting := exampleBacklog()
	d, err := WALOf(exampleSurvey(t), &waiting)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := WALTable(&out, d, &waiting); err != nil {
		t.Fatal(err)
	}
	want := `timeline  state     first                     last                      segments  size   stored  archived_from         archived_to           backups
1         archived  000000010000000000000002  000000010000000000000004  3         48MiB  3.0MiB  2026-11-20T12:00:00Z  2026-11-20T14:00:00Z  -
1         missing   000000010000000000000005  000000010000000000000005  1         -      -       -                     -                     -
1         archived  000000010000000000000006  000000010000000000000008  3         48MiB  3.0MiB  2026-11-20T16:00:00Z  2026-11-20T18:00:00Z  20261120T101530Z-k3v7qa
2         archived  000000020000000000000009  000000020000000000000009  1         16MiB  1.0MiB  2026-11-20T19:00:00Z  2026-11-20T19:00:00Z  20261120T101530Z-k3v7qa
2         dropped   00000002000000000000000A  00000002000000000000000B  2         -      -       -                     -                     take a new backup
timeline 1: 24.0 segments a day, 24MiB stored
timeline 2 left timeline 1 at 0/9000100
backup 20261119T101530Z-aaaaaa cannot be restored: WAL that it needs is missing
repository main: 7 segments, 7.0MiB stored
repository second: 4 segments, 4.0MiB stored; lacks 3 that another has, the first is 000000010000000000000006
repository third: cannot be listed: it is; away
backlog of this host: critical: 4 files wait, 48 MiB, the oldest for 2h0m; WAL is made at 2.0 MiB/s and archived at 1.0 MiB/s; 1.0 GiB free, full in 17m
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	full := errors.New("full")
	if err := WALTable(broken{full}, d, nil); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

func TestWALJSON(t *testing.T) {
	waiting := exampleBacklog()
	d, err := WALOf(exampleSurvey(t), &waiting)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := WALJSON(&out, d); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"status": "critical", "reasons": []any{"the oldest file waits for 2h0m", "the disk is full in 17m at this rate"}, "waiting": 4.0, "waiting_segments": 3.0,
		"waiting_bytes": 50331648.0, "oldest": "2026-11-20T10:00:00Z", "oldest_seconds": 7200.0, "made_per_second": 2097152.0, "archived_per_second": 1048576.0,
		"free_bytes": 1073741824.0, "full_in_seconds": 1024.0,
	}
	if diff := cmp.Diff(want, got["backlog"]); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{`"parent": 1`, `"switch_lsn": "0/9000100"`, `"unserved_backups": [`, `"open": true`, `"segments_per_day": 24`, `"error": "it is; away"`, `"lacks": []`} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("no %s in %s", text, out.String())
		}
	}
	// Nothing is there: empty lists and not null.
	out.Reset()
	empty, err := WALOf(&archive.Survey{Cluster: 7, Size: 16 << 20, Scan: &repo.WALScan{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := WALJSON(&out, empty); err != nil || strings.Contains(out.String(), "null") || strings.Contains(out.String(), "backlog") {
		t.Errorf("%s, %v", out.String(), err)
	}
}

func TestVerified(t *testing.T) {
	s := exampleSurvey(t)
	v, err := s.Verify(s.Backups)
	if err != nil {
		t.Fatal(err)
	}
	v.Findings = append(v.Findings, archive.Finding{Kind: archive.Damaged, Repository: "main", Key: "cluster/x", Err: errs.New(errs.Damaged, "", "object x\nis damaged")})
	d := VerifiedOf(s, v, true)
	if d.Status != "damaged" || len(d.Findings) != len(v.Findings) || !d.Deep || len(d.Backups) != 2 {
		t.Errorf("%+v", d)
	}
	var out bytes.Buffer
	if err := VerifiedTable(&out, d); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"unreachable  it is; away",
		"gap          00000002000000000000000A to 00000002000000000000000B, 2 segments, are dropped (max_backlog) in repository main",
		"behind       000000010000000000000006 is missing in repository second",
		"damaged      object x; is damaged",
		"backups: 20261120T101530Z-k3v7qa,20261119T101530Z-aaaaaa",
		"damaged: the WAL of 2 backups was verified, 0 objects of 0B read\n",
	} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("no %q in\n%s", text, out.String())
		}
	}
	out.Reset()
	if err := VerifiedJSON(&out, d); err != nil || strings.Contains(out.String(), "null") {
		t.Errorf("%s, %v", out.String(), err)
	}
	full := errors.New("full")
	if err := VerifiedTable(broken{full}, d); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}
