package e2e_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"agent/testing/harness"
	"agent/testing/stores"
)

// recoverable is a site whose server has gone, with three rows: one in the
// backup and one in each of two segments, of which it returns the first.
func recoverable(t *testing.T, p plan) (s *site, middle string) {
	t.Helper()
	p.WALSegSizeMB = 1
	s = newSite(t, p)
	s.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	s.push(t)
	s.Exec(t, "INSERT INTO a VALUES (2)")
	middle = s.switchWAL(t)
	s.Exec(t, "INSERT INTO a VALUES (3)")
	s.switchWAL(t)
	s.Stop(t)
	return s, middle
}

// goesOn restores, and starts a server after begin, with this much more of an
// environment: its recovery must stop and say why. After end the same recovery
// must go on to the last transaction.
func (s *site) goesOn(t *testing.T, why string, begin, end func(), env ...string) {
	t.Helper()
	dir := fresh(t)
	must(t, s.restore(t, dir))
	begin()
	c, err := harness.TryStart(t, dir, s.Major, nil, slices.Concat(s.reach, env)...)
	if err == nil { // it took connections first
		_, err = c.AwaitRecovery(t)
		if err != nil {
			c.WaitExit(t)
		}
	}
	end()
	if err == nil {
		t.Fatal("the server went live")
	}
	for _, want := range []string{"agent: error: ", why, "FATAL:  could not restore file "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the server's log does not say %q: %v", want, err)
		}
	}
	live := harness.StartExisting(t, dir, s.Major, nil, s.reach...)
	if live.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	hasRows(t, live, "1 2 3")
	live.Stop(t)
}

// TestRecoveryGoesOn takes the repository, or a part of it, away from a
// recovery: PostgreSQL stops, and loses nothing by it.
func TestRecoveryGoesOn(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s, middle := recoverable(t, plan{Options: harness.Options{Major: major}})
			object := s.walObject(t, middle)
			whole := readFile(t, object)
			rename := func(from, to string) func() {
				return func() {
					if err := os.Rename(from, to); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Run("unreachable", func(t *testing.T) {
				s.goesOn(t, s.repo, rename(s.repo, s.repo+".away"), rename(s.repo+".away", s.repo))
			})
			t.Run("gap", func(t *testing.T) {
				s.goesOn(t, middle+" is missing", rename(object, s.base+"/object"), rename(s.base+"/object", object))
			})
			t.Run("damaged", func(t *testing.T) {
				harmed := slices.Clone(whole)
				harmed[len(harmed)/2] ^= 1
				s.goesOn(t, s.key(t, object), func() { writeFile(t, object, harmed) }, func() { writeFile(t, object, whole) })
			})
		})
	}
}

// TestRecoveryGoesOnS3 is the same where the store refuses credentials.
func TestRecoveryGoesOnS3(t *testing.T) {
	t.Parallel()
	r := throughProxy(t, stores.StartVersityGW(t, stores.S3Options{TLS: true}))
	s, _ := recoverable(t, plan{url: r.url, reach: r.reach})
	s.goesOn(t, "InvalidAccessKeyId", func() {}, func() {}, "AWS_ACCESS_KEY_ID=nobody")
	s.goesOn(t, "SignatureDoesNotMatch", func() {}, func() {}, "AWS_SECRET_ACCESS_KEY=wrong")
}
