package backup

import (
	"log/slog"
	"testing"

	"agent/internal/compress"
	"agent/internal/postgres"
)

// TestBaseDeletedBeforeClaim lets a whole delete go by between the choice of the
// parent and the claim: nothing is announced any more, and the parent is gone.
func TestBaseDeletedBeforeClaim(t *testing.T) {
	for name, gone := range map[string]bool{"deleted": true, "there": false} {
		t.Run(name, func(t *testing.T) {
			codec, err := compress.Parse("zstd")
			if err != nil {
				t.Fatal(err)
			}
			log := slog.New(slog.DiscardHandler)
			res, err := archive(t, folder(t), openFolder(t), codec, 1, nil, log)
			if err != nil {
				t.Fatal(err)
			}
			if !gone {
				if _, err := res.repo.StoreBackup(t.Context(), res.backup, nil); err != nil {
					t.Fatal(err)
				}
			}
			manifest, err := res.repo.OpenManifest(t.Context(), res.backup)
			if err != nil {
				t.Fatal(err)
			}
			b := &run{Options: Options{Log: log}, repo: res.repo, control: &postgres.Control{SystemIdentifier: uint64(cluster)}}
			b.base = &base{Backup: res.backup, manifest: manifest}
			if err := b.spareDoomed(t.Context()); err != nil {
				t.Fatal(err)
			}
			if (b.base == nil) != gone {
				t.Errorf("the parent is %v", b.base)
			}
			b.closeBase()
		})
	}
}
