package repo

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/compress"
)

func TestMarks(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	mark := func(b BackupName, k Mark) {
		t.Helper()
		k.Backup = b
		if err := r.PutMark(t.Context(), testCluster, k); err != nil {
			t.Fatal(err)
		}
	}
	look := func() map[BackupName]Marks {
		t.Helper()
		all, err := r.Marks(t.Context(), testCluster)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if got := look(); len(got) > 0 {
		t.Fatalf("there are marks: %v", got)
	}
	// All within a moment: the later one counts all the same.
	mark(testName, Mark{Kind: MarkKeep})
	mark(testName, Mark{Kind: MarkNote, Key: "why", Value: "audit"})
	mark(testName, Mark{Kind: MarkNote, Key: "who", Value: "me"})
	mark(otherName, Mark{Kind: MarkKeep, Until: testTime.Add(time.Hour)})
	got := look()
	if !got[testName].Kept(testTime) || !got[otherName].Kept(testTime) || got[otherName].Kept(testTime.Add(time.Hour)) {
		t.Errorf("kept are %+v", got)
	}
	if diff := cmp.Diff(map[string]string{"why": "audit", "who": "me"}, got[testName].Notes); diff != "" {
		t.Error(diff)
	}
	mark(testName, Mark{Kind: MarkRelease})
	mark(testName, Mark{Kind: MarkNote, Key: "who"})
	mark(testName, Mark{Kind: MarkVerified, Verified: &Verification{Objects: 1}})
	mark(testName, Mark{Kind: MarkVerified, Verified: &Verification{Objects: 2}})
	got = look()
	if got[testName].Kept(testTime) || len(got[testName].Notes) != 1 || got[testName].Verified.Verified.Objects != 2 {
		t.Errorf("after the release: %+v", got[testName])
	}
	mark(testName, Mark{Kind: MarkKeep})
	if !look()[testName].Kept(testTime) {
		t.Error("it is not kept again")
	}
	if seen, err := r.MarksSeen(t.Context(), testCluster); err != nil || cmp.Diff(look(), seen) != "" {
		t.Errorf("seen are %v, %v", seen, err)
	}
}

// TestUnreadMark is that a mark which cannot be read keeps its backup.
func TestUnreadMark(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	if err := r.PutMark(t.Context(), testCluster, Mark{Backup: testName, Kind: MarkNote, Key: "a", Value: "b"}); err != nil {
		t.Fatal(err)
	}
	key := m.below(testCluster.markPrefix())[0]
	for _, body := range []string{"", "{", `{"backup":"` + string(otherName) + `","kind":"note"}`, strings.Repeat("x", maxMarker+1)} {
		m.objects[key] = memoryObject{[]byte(body), testTime}
		all, err := r.Marks(t.Context(), testCluster)
		if err != nil || all[testName].Unread == nil || !all[testName].Kept(testTime) {
			t.Errorf("of %.20q: %+v, %v", body, all[testName], err)
		}
	}
}

// TestKeysOfMarks are keys that are none.
func TestKeysOfMarks(t *testing.T) {
	for _, key := range []string{
		"x.json", "20261120T101530Z-k3v7qa/x.json", "20261120T101530Z-k3v7qa/20261120T101530.000Z-keep-aaaaaa", "bad/20261120T101530.000Z-keep-aaaaaa.json",
		"20261120T101530Z-k3v7qa/20261320T101530.000Z-keep-aaaaaa.json",
	} {
		if m, ok := testCluster.parseMark(testCluster.markPrefix() + key); ok {
			t.Errorf("%s is taken for %+v", key, m)
		}
	}
}
