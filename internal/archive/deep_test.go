package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/summary"
)

// recordsOf are those of a segment.
func recordsOf(body []byte) *summary.Summary {
	b := summary.NewBuilder()
	b.Write(body)
	return lightened(b)
}

// Segments that a server wrote one after the other follow each other, also over
// the edge of a timeline and where a crash lost the rest of a record.
func TestChain(t *testing.T) {
	history, err := postgres.ParseHistory(2, fixture(t, "timeline/00000002.history"))
	if err != nil {
		t.Fatal(err)
	}
	survey := &Survey{Size: fixtureSize, Histories: map[postgres.Timeline]postgres.History{2: history}}
	rows := map[string][]string{
		"pg13": {"pg13/00000001000000000000000B", "pg13/00000001000000000000000C"}, "pg14": {"pg14/00000001000000000000000C", "pg14/00000001000000000000000D"},
		"pg15": {"pg15/00000001000000000000000B", "pg15/00000001000000000000000C"}, "pg16": {"pg16/00000001000000000000000A", "pg16/00000001000000000000000B"},
		"pg17": {"pg17/00000001000000000000000A", "pg17/00000001000000000000000B"}, "pg18": {"pg18/00000001000000000000000B", "pg18/00000001000000000000000C"},
		"overwritten": {"overwrite/000000010000000000000009", "overwrite/00000001000000000000000A"},
		"timelines":   {"timeline/000000010000000000000009", "timeline/00000002000000000000000A", "timeline/00000002000000000000000B"},
	}
	follow := func(c *chain, name string, body []byte) error {
		seg, err := postgres.ParseSegment(filepath.Base(name), fixtureSize)
		if err != nil {
			t.Fatal(err)
		}
		if err = c.add(seg, recordsOf(body)); err != nil && err.Error() == errUnfinished.Error() && name == rows["overwritten"][1] {
			return nil // the fixture's last one is not finished
		}
		return err
	}
	for name, row := range rows {
		c := newChain(survey)
		for _, file := range row {
			if err := follow(c, file, fixture(t, file+".zst")); err != nil {
				t.Errorf("%s: %s: %v", name, file, err)
			}
		}
		// With another cluster's segment before it, the second does not follow.
		c = newChain(survey)
		other := "pg13"
		if name == other {
			other = "pg14"
		}
		if err := follow(c, row[0], fixture(t, rows[other][0]+".zst")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := follow(c, row[1], fixture(t, row[1]+".zst")); err == nil {
			t.Errorf("%s: a segment follows a foreign one", name)
		}
		// And of nothing it follows.
		if c.lost(); name == "timelines" {
			c = newChain(survey) // which remembers where a timeline was left
		}
		if err := follow(c, row[1], fixture(t, row[1]+".zst")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What cannot be decoded joins nothing and breaks nothing.
	c := newChain(survey)
	body := fixture(t, rows["pg15"][0]+".zst")
	body[0] ^= 0xff
	if err := errors.Join(follow(c, rows["pg15"][0], body), follow(c, rows["pg15"][1], fixture(t, rows["pg15"][1]+".zst"))); err != nil {
		t.Error(err)
	}
}

// fixtureSize is the segment size of the fixtures.
const fixtureSize postgres.SegmentSize = 1 << 20

const (
	first  = "00000001000000000000000B"
	second = "00000001000000000000000C"
)

// fixtures15 is a repository with two segments of PostgreSQL 15, a history, a
// partial segment and a backup history.
func fixtures15(t *testing.T, keys repo.Keys) (*stored, *Survey, []*repo.Backup) {
	t.Helper()
	s := newStored(t, keys)
	a, b := fixture(t, "pg15/"+first+".zst"), fixture(t, "pg15/"+second+".zst")
	cluster := repo.ClusterID(binary.LittleEndian.Uint64(a[24:]))
	s.put(cluster, first, a)
	s.put(cluster, second, b)
	s.put(cluster, second+".partial", b)
	s.put(cluster, first+".00000028.backup", []byte("START WAL LOCATION: 0/B000028\n"))
	s.put(cluster, "00000002.history", []byte("1\t0/D00000\tno recovery target specified\n"))
	survey, err := Take(t.Context(), s.Repository, Options{Cluster: cluster, Size: fixtureSize})
	if err != nil {
		t.Fatal(err)
	}
	return s, survey, []*repo.Backup{backup("b", 1, 0xB, 0xB)}
}

func TestDeep(t *testing.T) {
	keys := repo.Keys{}
	identity, recipient, err := crypto.Generate(false)
	if err != nil {
		t.Fatal(err)
	}
	if keys.WAL, err = crypto.ParseRecipients([]string{recipient}); err != nil {
		t.Fatal(err)
	}
	keys.Identities = crypto.NewIdentities(t.Context(), crypto.Sources{Text: identity})
	for name, keys := range map[string]repo.Keys{"plain": {}, "sealed": keys} {
		t.Run(name, func(t *testing.T) {
			s, survey, backups := fixtures15(t, keys)
			for concurrency := range 4 {
				v, err := survey.Deep(t.Context(), s.Repository, backups, DeepOptions{All: true, Concurrency: concurrency})
				if err != nil || len(v.Findings) != 0 || v.Objects != 5 || survey.Status(v) != "ok" {
					t.Fatalf("%+v, %v", v, err)
				}
			}
			v, err := survey.Deep(t.Context(), s.Repository, backups, DeepOptions{Concurrency: 2})
			if err != nil || v.Objects != 2 {
				t.Fatalf("what the backup needs: %+v, %v", v, err)
			}
			// Each harm is found, all at once, and named.
			for _, file := range []string{first, second + ".partial.*", "00000002.history"} {
				path := s.path(file)
				body, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				body[len(body)-1] ^= 1
				if err := errors.Join(os.Remove(path), os.WriteFile(path, body, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			v, err = survey.Deep(t.Context(), s.Repository, backups, DeepOptions{All: true, Concurrency: 2})
			if err != nil || len(v.Findings) != 3 || v.Objects != 5 || survey.Status(v) != "damaged" || errs.KindOf(survey.Err(v)) != errs.Damaged {
				t.Fatalf("%+v, %v", v, err)
			}
			for i, want := range []string{first, second + ".partial", "00000002.history"} {
				if f := v.Findings[i]; f.Kind != Damaged || !strings.Contains(f.Key, want) || !strings.Contains(f.Text(fixtureSize), f.Key) || (len(f.Backups) == 1) != (i == 0) {
					t.Errorf("%+v", f)
				}
			}
		})
	}
	t.Run("no identity", func(t *testing.T) {
		s, survey, backups := fixtures15(t, repo.Keys{WAL: keys.WAL, Identities: crypto.NewIdentities(t.Context(), crypto.Sources{})})
		if _, err := survey.Deep(t.Context(), s.Repository, backups, DeepOptions{All: true, Concurrency: 2}); errs.KindOf(err) != errs.Identity {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("the end", func(t *testing.T) {
		s, survey, backups := fixtures15(t, repo.Keys{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := survey.Deep(ctx, s.Repository, backups, DeepOptions{All: true, Concurrency: 2}); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
}

// What is stored whole and is not what its name says, or does not follow.
func TestDeepContent(t *testing.T) {
	a, b := fixture(t, "pg15/"+first+".zst"), fixture(t, "pg15/"+second+".zst")
	cluster := repo.ClusterID(binary.LittleEndian.Uint64(a[24:]))
	later := func(b []byte) []byte {
		b = append([]byte{}, b...)
		binary.LittleEndian.PutUint32(b[16:], binary.LittleEndian.Uint32(b[16:])+1)
		b[2] |= byte(postgres.PageContRecord)
		return b
	}
	for name, c := range map[string]struct {
		first, second []byte
		text          string
	}{
		"misnamed":          {b, a, "is not what its name says"},
		"a broken chain":    {a, later(b), "cannot be replayed behind"},
		"an unfinished end": {append(append([]byte{}, a[:len(a)/2]...), make([]byte, len(a)/2)...), b, "cannot be replayed behind"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStored(t, repo.Keys{})
			s.put(cluster, first, c.first)
			s.put(cluster, second, c.second)
			survey, err := Take(t.Context(), s.Repository, Options{Cluster: cluster})
			if err != nil || survey.Size != fixtureSize {
				t.Fatalf("%v, %v", survey, err)
			}
			v, err := survey.Deep(t.Context(), s.Repository, nil, DeepOptions{All: true, Concurrency: 3})
			if err != nil || len(v.Findings) == 0 {
				t.Fatalf("%+v, %v", v, err)
			}
			if got := v.Findings[len(v.Findings)-1].Text(fixtureSize); !strings.Contains(got, c.text) {
				t.Errorf("got %s", got)
			}
		})
	}
}

// A store that goes away in the middle is told once, not for each object.
func TestDeepAway(t *testing.T) {
	s, survey, backups := fixtures15(t, repo.Keys{})
	if err := os.Rename(s.dir, s.dir+".away"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Rename(s.dir+".away", s.dir) })
	v, err := survey.Deep(t.Context(), s.Repository, backups, DeepOptions{All: true, Concurrency: 2})
	if err != nil || len(v.Findings) != 1 || v.Findings[0].Kind != Unreachable || survey.Status(v) != "unreachable" || errs.KindOf(survey.Err(v)) != errs.Storage {
		t.Fatalf("%+v, %v", v, err)
	}
}
