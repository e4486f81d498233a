package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/repo"
	"agent/internal/retention"
)

// deletedExample is the result of a delete that met everything.
func deletedExample() *retention.Result {
	all := examples()
	decision := func(b *repo.Backup, continuous bool, reasons ...string) *retention.Decision {
		return &retention.Decision{Item: &retention.Item{Backup: b}, Reasons: reasons, Continuous: continuous}
	}
	return &retention.Result{
		Plan: &retention.Plan{
			Cluster: 7, WALStays: "something is not known",
			Decisions: []*retention.Decision{
				decision(all[1], false),
				decision(all[0], false, "keep_daily 2026-11-20", "keep_daily 2026-11-20", "marked to be kept"),
				decision(all[0], true, "the newest"),
			},
		},
		Confirmed: true,
		Places: []retention.Place{
			{
				Name:    "near",
				Backups: repo.Swept{Objects: 1234, Bytes: 3 << 30, Requests: 3},
				Garbage: repo.Swept{Objects: 1, Bytes: 5, Requests: 1},
				WAL: repo.Swept{Objects: 7, Bytes: 7 << 20, Locked: 2, Failed: 1, Requests: 2, Problems: []repo.SyncProblem{
					{Key: "cluster/x", Err: errors.New("denied\nby the store")},
				}},
			},
			{Name: "far", Err: errors.New("away\nfor now")},
		},
	}
}

func TestDeletedTable(t *testing.T) {
	var out bytes.Buffer
	d := DeletedOf(deletedExample())
	if err := DeletedTable(&out, d); err != nil {
		t.Fatal(err)
	}
	want := `name                     type  stop_time             timeline  verdict  wal           why
20261119T101530Z-aaaaaa  full  2026-11-19T10:15:31Z  31        delete   -             no rule wants it
20261120T101530Z-k3v7qa  full  2026-11-20T10:17:00Z  1         keep     its own       keep_daily 2026-11-20; marked to be kept
20261120T101530Z-k3v7qa  full  2026-11-20T10:17:00Z  1         keep     from here on  the newest
no WAL is deleted: something is not known
repository near: of backups deleted: 1,234 objects, 3.0 GiB
repository near: of no backup deleted: 1 object, 5 B
repository near: of WAL deleted: 7 objects, 7.0 MiB, 2 are locked and stay, 1 could not be removed
repository far: away; for now
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	d.Confirmed, d.Backups, d.WALStays, d.Repositories = false, nil, "", d.Repositories[:1]
	if err := DeletedTable(&out, d); err != nil {
		t.Fatal(err)
	}
	want = `name  type  stop_time  timeline  verdict  wal  why
repository near: of backups would go: 1,234 objects, 3.0 GiB
repository near: of no backup would go: 1 object, 5 B
repository near: of WAL would go: 7 objects, 7.0 MiB, 2 are locked and stay, 1 could not be removed
nothing was deleted: this is what --confirm would do
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	full := errors.New("full")
	if err := errors.Join(DeletedTable(broken{full}, d), DeletedJSON(broken{full}, d)); err == nil {
		t.Error("what could not be written is not told")
	}
}

// The names and kinds of the fields are a contract.
func TestDeletedJSON(t *testing.T) {
	var out bytes.Buffer
	if err := DeletedJSON(&out, DeletedOf(deletedExample())); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	kind := func(objects, bytes, locked, failed float64, errs ...any) map[string]any {
		return map[string]any{"objects": objects, "bytes": bytes, "locked": locked, "failed": failed, "errors": append([]any{}, errs...)}
	}
	backup := func(name, stop string, timeline float64, keep, continuous bool, reasons ...any) map[string]any {
		return map[string]any{
			"name": name, "type": "full", "stop_time": stop, "timeline": timeline, "keep": keep, "reasons": append([]any{}, reasons...), "continuous": continuous,
		}
	}
	const older, newer = "20261119T101530Z-aaaaaa", "20261120T101530Z-k3v7qa"
	want := map[string]any{
		"system_identifier": "7", "confirmed": true, "extended": 0.0, "wal_stays": "something is not known",
		"backups": []any{
			backup(older, "2026-11-19T12:15:31+02:00", 31, false, false),
			backup(newer, "2026-11-20T12:17:00.25+02:00", 1, true, false, "keep_daily 2026-11-20", "marked to be kept"),
			backup(newer, "2026-11-20T12:17:00.25+02:00", 1, true, true, "the newest"),
		},
		"repositories": []any{
			map[string]any{
				"repository": "near", "requests": 6.0, "backups": kind(1234, 3<<30, 0, 0), "garbage": kind(1, 5, 0, 0),
				"wal": kind(7, 7<<20, 2, 1, "denied; by the store"), "unfinished": kind(0, 0, 0, 0),
			},
			map[string]any{
				"repository": "far", "requests": 0.0, "backups": kind(0, 0, 0, 0), "garbage": kind(0, 0, 0, 0),
				"wal": kind(0, 0, 0, 0), "unfinished": kind(0, 0, 0, 0), "error": "away; for now",
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
