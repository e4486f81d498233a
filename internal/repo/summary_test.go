package repo

import (
	"bytes"
	"errors"
	"testing"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/storage"
)

const summaryObject = "cluster/07321654987321654987/summary/0000000100000000/" + segmentName

func TestSummaryObject(t *testing.T) {
	keys, _ := testKeys(t)
	raw := noise(7, 3<<20)
	for name, o := range map[string]Options{
		"plain zstd":  {Codec: setting(t, "zstd")},
		"plain lz4":   {Codec: setting(t, "lz4")},
		"sealed none": {Codec: setting(t, "none"), Keys: Keys{Meta: keys.Meta, Identities: keys.Identities}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(m, o.Keys, o.Codec)
			if err := r.PutSummary(t.Context(), testCluster, walFile(t, segmentName), raw); err != nil {
				t.Fatal(err)
			}
			stored, ok := m.objects[summaryObject]
			if !ok || len(m.objects) != 1 {
				t.Fatalf("stored %v", m.keys())
			}
			if sum, ok, err := headHash(stored.body[:headSize]); !ok || err != nil || sum != sha(raw) {
				t.Errorf("the head has %x, %v, %v", sum, ok, err)
			}
			// The first one stays, whoever comes later with whatever.
			if err := testRepo(m, Keys{}, compress.Setting{}).PutSummary(t.Context(), testCluster, walFile(t, segmentName), []byte("other")); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.objects[summaryObject].body, stored.body) {
				t.Error("the summary was replaced")
			}
			got, err := r.ReadSummary(t.Context(), testCluster, walFile(t, segmentName))
			if err != nil || !bytes.Equal(got, raw) {
				t.Errorf("read %d bytes: %v", len(got), err)
			}
		})
	}
}

func TestSummaryObjectRefusals(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	if _, err := r.ReadSummary(t.Context(), testCluster, walFile(t, segmentName)); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("none there: %v", err)
	}
	for _, name := range []string{"00000002.history", segmentName + ".partial", segmentName + ".00000028.backup"} {
		if err := r.PutSummary(t.Context(), testCluster, walFile(t, name), nil); errs.KindOf(err) != errs.Usage {
			t.Errorf("put of %s: %v", name, err)
		}
		if _, err := r.ReadSummary(t.Context(), testCluster, walFile(t, name)); errs.KindOf(err) != errs.Usage {
			t.Errorf("read of %s: %v", name, err)
		}
	}
	if err := r.PutSummary(t.Context(), testCluster, walFile(t, segmentName), make([]byte, maxSummary+1)); err == nil || len(m.objects) != 0 {
		t.Errorf("too long: %v", err)
	}
	if err := r.PutSummary(t.Context(), testCluster, walFile(t, segmentName), noise(1, 5000)); err != nil {
		t.Fatal(err)
	}
	body := m.objects[summaryObject].body
	for _, damaged := range [][]byte{body[:len(body)-1], body[40:], nil, append(bytes.Clone(body[:len(body)-10]), make([]byte, 10)...)} {
		m.set(summaryObject, damaged)
		if _, err := r.ReadSummary(t.Context(), testCluster, walFile(t, segmentName)); errs.KindOf(err) != errs.Damaged {
			t.Errorf("damaged: %v", err)
		}
	}
	m.hook = func(string, string) error { return storage.ErrUnavailable }
	if err := r.PutSummary(t.Context(), testCluster, walFile(t, segmentName), []byte("a")); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("the store fails: %v", err)
	}
}
