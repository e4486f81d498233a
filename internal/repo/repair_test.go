package repo

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"agent/internal/errs"
	"agent/internal/storage"
)

// repairable are two places that hold the same object, and its key.
func repairable(t *testing.T) (r *Repository, near, far *memory, key string, body []byte, want ObjectDigest) {
	t.Helper()
	near, far = newMemory(), newMemory()
	r = New([]Place{{Name: "near", Bucket: near, Required: true}, {Name: "far", Bucket: far}}, testRepo(near, Keys{}, setting(t, "zstd")).options(t))
	key, body = testCluster.packKey(testName, 0), noise(1, 5000)
	near.set(key, body)
	far.set(key, body)
	return r, near, far, key, body, ObjectDigest{Size: int64(len(body)), SHA256: sha(body)}
}

// options are those of a test's repository, for another one.
func (r *Repository) options(t *testing.T) Options {
	t.Helper()
	return Options{Codec: r.codec, Log: r.log, Now: r.now, Version: r.version, SpoolDir: t.TempDir()}
}

// What is damaged or missing is replaced by a good copy, and nothing is touched
// without one.
func TestRepair(t *testing.T) {
	flipped := func(b []byte) []byte {
		b = slices.Clone(b)
		b[len(b)/2] ^= 1
		return b
	}
	for what, c := range map[string]struct {
		near, far func([]byte) []byte // nil: it is missing
		from      string
		kind      errs.Kind // of the error
	}{
		"damaged":        {flipped, bytes.Clone, "far", 0},
		"truncated":      {func(b []byte) []byte { return b[:10] }, bytes.Clone, "far", 0},
		"missing":        {nil, bytes.Clone, "far", 0},
		"good":           {bytes.Clone, flipped, "", 0},
		"both damaged":   {flipped, flipped, "", errs.Damaged},
		"the other gone": {flipped, nil, "", errs.Damaged},
		"both gone":      {nil, nil, "", errs.Damaged},
	} {
		t.Run(what, func(t *testing.T) {
			r, near, far, key, body, want := repairable(t)
			put := func(m *memory, change func([]byte) []byte) []byte {
				if change == nil {
					delete(m.objects, key)
					return nil
				}
				m.set(key, change(body))
				return m.objects[key].body
			}
			before, other := put(near, c.near), put(far, c.far)
			fix, err := r.Repair(t.Context(), "near", key, &want)
			if fix.From != c.from || errs.KindOf(err) != c.kind {
				t.Errorf("%+v, %v", fix, err)
			}
			now := near.objects[key].body
			if c.from != "" && !bytes.Equal(now, body) {
				t.Error("the object is not what was stored")
			}
			if c.from == "" && !bytes.Equal(now, before) {
				t.Error("it was changed without a good copy")
			}
			if !bytes.Equal(far.objects[key].body, other) {
				t.Error("the place that it came from was changed")
			}
		})
	}
}

// A repair that is cut off after the deletion leaves a missing object, which the
// next one stores; a deletion that is refused leaves everything as it was.
func TestRepairCutOff(t *testing.T) {
	r, near, _, key, body, want := repairable(t)
	bad := append(slices.Clone(body), 'x')
	near.set(key, bad)
	near.hook = func(op, _ string) error {
		if op == "delete" {
			return storage.ErrPermission
		}
		return nil
	}
	if _, err := r.Repair(t.Context(), "near", key, &want); !errors.Is(err, storage.ErrPermission) || !strings.Contains(errs.HintOf(err), "locked") {
		t.Errorf("a deletion that is refused: %v", err)
	}
	if !bytes.Equal(near.objects[key].body, bad) {
		t.Error("the object has changed")
	}
	near.hook = func(op, _ string) error {
		if op == "put" {
			return storage.ErrUnavailable
		}
		return nil
	}
	if _, err := r.Repair(t.Context(), "near", key, &want); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("a store that is away: %v", err)
	}
	if _, there := near.objects[key]; there {
		t.Error("the bad object is still there")
	}
	near.hook = nil
	if fix, err := r.Repair(t.Context(), "near", key, &want); err != nil || fix.From != "far" || !bytes.Equal(near.objects[key].body, body) {
		t.Errorf("again: %+v, %v", fix, err)
	}
}

// A look that the network has spoiled once does not cost the object.
func TestRepairSecondLook(t *testing.T) {
	r, near, _, key, body, want := repairable(t)
	near.hook = func(op, _ string) error {
		if op == "delete" {
			t.Error("a good object is deleted")
		}
		return nil
	}
	if fix, err := r.Repair(t.Context(), "near", key, &want); err != nil || fix.From != "" || fix.Size != int64(len(body)) {
		t.Errorf("%+v, %v", fix, err)
	}
}

// Sealed WAL that is damaged is not deleted for a copy that cannot be opened here,
// and backup.json is proved by itself.
func TestRepairUnproved(t *testing.T) {
	r, near, far, _, _, _ := repairable(t)
	keys, _ := testKeys(t)
	var sealed bytes.Buffer
	sum := [32]byte(sha(noise(2, 100)))
	w, err := keys.WAL.Seal(&sealed, &sum)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(noise(2, 100))
	w.Close()
	key := testCluster.walPrefix() + "0000000100000000/000000010000000000000001"
	near.set(key, sealed.Bytes()[:20])
	far.set(key, sealed.Bytes())
	if _, err := r.Repair(t.Context(), "near", key, nil); errs.KindOf(err) != errs.Identity {
		t.Errorf("a copy that cannot be opened: %v", err)
	}
	if len(near.objects[key].body) != 20 {
		t.Error("the object has changed")
	}
	if _, err := r.Repair(t.Context(), "near", testCluster.packKey(testName, 3), nil); err == nil {
		t.Error("a pack of which nothing is known is repaired")
	}
}
