package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/repo"
)

func examples() []*repo.Backup {
	at := time.Date(2026, 11, 20, 12, 15, 30, 0, time.FixedZone("", 7200))
	return []*repo.Backup{
		{
			Name: "20261120T101530Z-k3v7qa", Type: "full", Cluster: 7321654987321654987, PostgresVersion: 150020,
			Label: "nightly", Started: at, Stopped: at.Add(90*time.Second + 250*time.Millisecond),
			StartLSN: 0x9000028, StopLSN: 0x1_0A000000, Timeline: 1,
			StartSegment: "000000010000000000000009", StopSegment: "00000001000000010000000A",
			DataBytes: 3 << 30, StoredBytes: 1 << 30, Files: 1234, PackCount: 32, Tablespaces: 1,
			Checksums: true, Host: "db", Directory: "/srv/pg", Agent: "1.0", Sealed: true,
		},
		{
			Name: "20261119T101530Z-aaaaaa", Type: "full", Cluster: 7, PostgresVersion: 180006,
			Started: at.Add(-24 * time.Hour), Stopped: at.Add(-24*time.Hour + time.Second), Timeline: 0x1F,
			StartSegment: "0000001F0000000000000001", StopSegment: "0000001F0000000000000001",
			BadPages: 2, BadPageSample: []string{"base/5/1 block 7", "base/5/1 block 9"},
		},
	}
}

// now is when the examples are looked at.
func now() time.Time { return time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC) }

// described are backups without marks.
func described(all []*repo.Backup) []Backup {
	var out []Backup
	for _, b := range all {
		out = append(out, Of(b, repo.Marks{}, now()))
	}
	return out
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	sorted := examples()
	Sort(sorted)
	all := described(sorted)
	if err := Table(&out, all); err != nil {
		t.Fatal(err)
	}
	want := `name                     modified              wal_file                  type  stop_lsn   timeline  size    stored  ratio  duration  postgres  permanent  notes
20261119T101530Z-aaaaaa  2026-11-19T10:15:31Z  0000001F0000000000000001  full  0/0        31        0B      0B      0.0    1s        18.6      no         2 damaged pages
20261120T101530Z-k3v7qa  2026-11-20T10:17:00Z  000000010000000000000009  full  1/A000000  1         3.0GiB  1.0GiB  3.0    1m30.3s   15.20     no         -
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Fatal(d)
	}
	// How scripts for WAL-G find the header, and then the columns.
	lines := strings.Split(out.String(), "\n")
	if !regexp.MustCompile(`^(backup_)?name\s+(last_)?modified`).MatchString(lines[0]) {
		t.Fatalf("the header is %q", lines[0])
	}
	if f := strings.Fields(lines[1]); f[0] != "20261119T101530Z-aaaaaa" || f[1] != "2026-11-19T10:15:31Z" || f[2] != "0000001F0000000000000001" {
		t.Fatalf("the columns are %q", f)
	}
	out.Reset()
	if err := Table(&out, nil); err != nil || strings.Count(out.String(), "\n") != 1 {
		t.Fatalf("%q, %v", out.String(), err)
	}
	full := errors.New("full")
	if err := errors.Join(Table(broken{full}, all), Show(broken{full}, all[0]), JSON(broken{full}, all)); strings.Count(err.Error(), "full") != 3 {
		t.Fatalf("got %v", err)
	}
}

type broken struct{ err error }

func (b broken) Write([]byte) (int, error) { return 0, b.err }

// The names and kinds of the fields are a contract.
func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := JSON(&out, described(examples()[:1])); err != nil {
		t.Fatal(err)
	}
	want := `[
  {
    "name": "20261120T101530Z-k3v7qa",
    "type": "full",
    "depth": 0,
    "system_identifier": "7321654987321654987",
    "start_time": "2026-11-20T12:15:30+02:00",
    "stop_time": "2026-11-20T12:17:00.25+02:00",
    "duration_seconds": 90.25,
    "start_lsn": "0/9000028",
    "stop_lsn": "1/A000000",
    "timeline": 1,
    "start_wal": "000000010000000000000009",
    "stop_wal": "00000001000000010000000A",
    "data_bytes": 3221225472,
    "read_bytes": 0,
    "inherited_bytes": 0,
    "stored_bytes": 1073741824,
    "ratio": 3,
    "files": 1234,
    "packs": 32,
    "tablespaces": 1,
    "postgres_version": "15.20",
    "label": "nightly",
    "permanent": false,
    "annotations": {},
    "data_checksums": true,
    "bad_pages": 0,
    "encrypted": true,
    "host": "db",
    "data_directory": "/srv/pg",
    "standby": false,
    "agent": "1.0"
  }
]
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Fatal(d)
	}
	out.Reset()
	if err := JSON(&out, nil); err != nil || out.String() != "[]\n" {
		t.Fatalf("none: %q, %v", out.String(), err)
	}
	out.Reset()
	if err := ShowJSON(&out, described(examples())[1]); err != nil {
		t.Fatal(err)
	}
	var one Backup
	if err := json.Unmarshal(out.Bytes(), &one); err != nil || !slices.Equal(one.BadPageSample, examples()[1].BadPageSample) || one.Timeline != 31 {
		t.Fatalf("%+v, %v", one, err)
	}
}

func TestShow(t *testing.T) {
	var out bytes.Buffer
	if err := Show(&out, described(examples())[1]); err != nil {
		t.Fatal(err)
	}
	want := `name            20261119T101530Z-aaaaaa
type            full
label           
cluster         7
postgres        18.6
start           2026-11-19T10:15:30Z
stop            2026-11-19T10:15:31Z
duration        1s
start lsn       0/0
stop lsn        0/0
timeline        31
wal needed      0000001F0000000000000001 to 0000001F0000000000000001
files           0
tablespaces     0
size            0B
read            0B
stored          0B in 0 packs
ratio           0.00
encrypted       no
permanent       no
data checksums  no
damaged pages   2
                base/5/1 block 7
                base/5/1 block 9
host            
data directory  
from a standby  no
agent           
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Fatal(d)
	}
}

// TestMarks describes a backup with each kind of mark.
func TestMarks(t *testing.T) {
	later, earlier := now().Add(time.Hour), now().Add(-time.Hour)
	verified := &repo.Mark{Kind: repo.MarkVerified, Time: earlier}
	for _, test := range []struct {
		name      string
		marks     repo.Marks
		permanent bool
		until     *time.Time
		notes     string
	}{
		{"none", repo.Marks{}, false, nil, "-"},
		{"kept", repo.Marks{Keep: &repo.Mark{Kind: repo.MarkKeep}}, true, nil, "-"},
		{"kept until", repo.Marks{Keep: &repo.Mark{Kind: repo.MarkKeep, Until: later}}, true, &later, "kept until 2026-11-21T01:00:00Z"},
		{"kept no more", repo.Marks{Keep: &repo.Mark{Kind: repo.MarkKeep, Until: earlier}}, false, nil, "-"},
		{"not known", repo.Marks{Unread: errors.New("damaged")}, true, nil, "-"},
		{"noted", repo.Marks{Notes: map[string]string{"ticket": "4711", "by": "me"}, Verified: verified}, false, nil, "by=me, ticket=4711"},
	} {
		d := Of(examples()[0], test.marks, now())
		if d.Permanent != test.permanent || (d.KeptUntil == nil) != (test.until == nil) || d.KeptUntil != nil && !d.KeptUntil.Equal(*test.until) {
			t.Errorf("%s: permanent %v, kept until %v", test.name, d.Permanent, d.KeptUntil)
		}
		var table, shown bytes.Buffer
		if err := errors.Join(Table(&table, []Backup{d}), Show(&shown, d)); err != nil {
			t.Fatal(err)
		}
		line, _ := strings.CutSuffix(strings.Split(table.String(), "\n")[1], "  "+test.notes)
		if want := yesNo(test.permanent); !strings.HasSuffix(strings.TrimSpace(line), want) {
			t.Errorf("%s: not %q and %q: %s", test.name, want, test.notes, table.String())
		}
		for key, value := range test.marks.Notes {
			if want := "note            " + key + "=" + value + "\n"; !strings.Contains(shown.String(), want) {
				t.Errorf("%s: %q is not shown:\n%s", test.name, want, shown.String())
			}
		}
		if got := strings.Contains(shown.String(), "verified        2026-11-20T23:00:00Z\n"); got != (test.marks.Verified != nil) {
			t.Errorf("%s: verified %v:\n%s", test.name, got, shown.String())
		}
		if got := strings.Contains(shown.String(), "kept until      2026-11-21T01:00:00Z\n"); got != (test.until != nil) {
			t.Errorf("%s: kept until %v:\n%s", test.name, got, shown.String())
		}
	}
}

func TestNoted(t *testing.T) {
	d := Of(examples()[0], repo.Marks{Notes: map[string]string{"ticket": "4711", "url": "a=b"}}, now())
	for notes, want := range map[string]bool{
		"": true, "ticket": true, "ticket=4711": true, "ticket=4712": false, "other": false, "url=a=b": true, "url=a": false,
		"ticket,url": true, "ticket,other": false, "ticket=": false,
	} {
		var asked []string
		if notes != "" {
			asked = strings.Split(notes, ",")
		}
		if got := d.Noted(asked); got != want {
			t.Errorf("%q: %v", notes, got)
		}
	}
}
