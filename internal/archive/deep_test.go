package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"walagent/internal/crypto"
	"walagent/internal/errs"
	"walagent/internal/postgres"
	"walagent/internal/repo"
)

func edgesOf(body []byte) Edges {
	c := &pageChain{}
	c.Write(body)
	return c.Edges()
}

// Segments that a server wrote one after the other join, and say what is known.
func TestEdges(t *testing.T) {
	pairs := map[string][2]string{
		"pg13": {"pg13/00000001000000000000000B", "pg13/00000001000000000000000C"}, "pg14": {"pg14/00000001000000000000000C", "pg14/00000001000000000000000D"},
		"pg15": {"pg15/00000001000000000000000B", "pg15/00000001000000000000000C"}, "pg16": {"pg16/00000001000000000000000A", "pg16/00000001000000000000000B"},
		"pg17": {"pg17/00000001000000000000000A", "pg17/00000001000000000000000B"}, "pg18": {"pg18/00000001000000000000000B", "pg18/00000001000000000000000C"},
		"overwritten": {"overwrite/000000010000000000000009", "overwrite/00000001000000000000000A"}, "a later timeline": {"timeline/00000002000000000000000A", "timeline/00000002000000000000000B"},
	}
	for name, pair := range pairs {
		a, b := edgesOf(fixture(t, pair[0]+".zst")), edgesOf(fixture(t, pair[1]+".zst"))
		t.Logf("%s: %+v, %+v", name, a, b)
		if err := a.Joins(b); err != nil || a.First == 0 || a.Last < a.First {
			t.Errorf("%s: %v (%+v, %+v)", name, err, a, b)
		}
	}
}

func TestJoins(t *testing.T) {
	for name, c := range map[string]struct {
		a, b Edges
		text string
	}{
		"not known":         {Edges{First: 1, Last: 1}, Edges{First: 1, Begins: 100}, ""},
		"as left":           {Edges{First: 1, Last: 1, Rest: 100, Known: true}, Edges{First: 1, Begins: 100}, ""},
		"after a switch":    {Edges{First: 1, Last: 1, Known: true}, Edges{First: 1}, ""},
		"overwritten":       {Edges{First: 1, Last: 1, Rest: 100, Known: true}, Edges{First: 1, Overwrites: true}, ""},
		"another length":    {Edges{First: 1, Last: 1, Rest: 100, Known: true}, Edges{First: 1, Begins: 99}, "left 100"},
		"nothing begins":    {Edges{First: 1, Last: 1, Rest: 100, Known: true}, Edges{First: 1}, "left 100"},
		"nothing was left":  {Edges{First: 1, Last: 1, Known: true}, Edges{First: 1, Begins: 8}, "ended by a switch"},
		"an older timeline": {Edges{First: 1, Last: 2}, Edges{First: 1}, "timeline 1"},
	} {
		err := c.a.Joins(c.b)
		if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// However the bytes are cut, the edges are the same.
func TestEdgesChunks(t *testing.T) {
	body := fixture(t, "pg15/00000001000000000000000B.zst")[:256<<10]
	want := edgesOf(body)
	rapid.Check(t, func(t *rapid.T) {
		c := &pageChain{}
		for rest := body; len(rest) > 0; {
			n := min(rapid.IntRange(1, 20000).Draw(t, "n"), len(rest))
			c.Write(rest[:n])
			rest = rest[n:]
		}
		if got := c.Edges(); got != want {
			t.Fatalf("%+v and not %+v", got, want)
		}
	})
}

func FuzzEdges(f *testing.F) {
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, body []byte) {
		e := edgesOf(body)
		if !e.Known && e.Rest != 0 {
			t.Fatalf("%+v", e)
		}
	})
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
		binary.LittleEndian.PutUint32(b[16:], edgesOf(b).Begins+1)
		b[2] |= byte(postgres.PageContRecord)
		return b
	}
	for name, c := range map[string]struct {
		first, second []byte
		text          string
	}{
		"misnamed": {b, a, "is not what its name says"},
		// Its last page says that it was switched there.
		"a broken chain": {append(append([]byte{}, a[:len(a)-8192]...), make([]byte, 8192)...), later(b), "does not join " + first},
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
