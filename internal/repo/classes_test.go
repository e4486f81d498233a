package repo

import (
	"testing"

	"agent/internal/compress"
	"agent/internal/errs"
)

// TestPromise8KeyClasses seals data, WAL and manifests to three keys: each
// identity opens its own class and no other.
func TestPromise8KeyClasses(t *testing.T) {
	var sealTo Keys
	var opens [3]Keys // by class: data, WAL, meta
	for i := range opens {
		k, _ := testKeys(t)
		opens[i].Identities = k.Identities
		switch i {
		case 0:
			sealTo.Data = k.Data
		case 1:
			sealTo.WAL = k.WAL
		case 2:
			sealTo.Meta = k.Meta
		}
	}
	m := newMemory()
	// The writer has no identity at all, as a database host.
	writer := testRepo(m, sealTo, compress.Setting{})
	frame, err := mustEncoder(t).AppendFrame(nil, noise(1, 8192))
	if err != nil {
		t.Fatal(err)
	}
	set := newPacks(t.Context(), writer, otherName, 2)
	data := set.Writer(PackData)
	if _, err := data.Append(set.ctx, frame, 8192); err != nil {
		t.Fatal(err)
	}
	if err := errorsFirst(data.Close(), set.group.Wait()); err != nil {
		t.Fatal(err)
	}
	list, err := set.Packs()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := putWAL(t, writer, segmentName, noise(2, 8192)); err != nil {
		t.Fatal(err)
	}
	b, packs := store(t, writer, []item{{ // zeros need no data, but a section among the packs
		Entry: Entry{Kind: EntryFile, Path: "zeros", Mode: 0o600, Size: 8192, ModTime: testTime},
		Runs:  []named{{Length: 8192, Zero: true}},
	}}, nil)

	read := [3]func(r *Repository) error{
		func(r *Repository) error {
			return r.ReadPack(t.Context(), testCluster, otherName, list[0], func(s *PackStream) error {
				return errorsFirst(s.ReadFrame(0, make([]byte, len(frame))), s.Finish())
			})
		},
		func(r *Repository) error {
			_, err := getWAL(t, r, segmentName)
			return err
		},
		func(r *Repository) error {
			_, _, err := load(t.Context(), r, b, packs)
			return err
		},
	}
	for holder, keys := range opens {
		for class, open := range read {
			err := open(testRepo(m, keys, compress.Setting{}))
			if holder == class && err != nil {
				t.Errorf("the identity of class %d does not open it: %v", class, err)
			}
			if holder != class && errs.KindOf(err) != errs.Identity {
				t.Errorf("the identity of class %d on class %d: %v", holder, class, err)
			}
		}
	}
}

func mustEncoder(t *testing.T) *compress.Encoder {
	t.Helper()
	enc, err := compress.NewEncoder(compress.Setting{})
	if err != nil {
		t.Fatal(err)
	}
	return enc
}
