package azure

import (
	"context"
	"errors"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"agent/internal/storage"
)

// Probe asks for the container's properties and lists one version of a blob;
// see storage.Prober. Whether versions are kept is a setting of the account,
// which this interface of the service tells only by an object or by
// immutability support; the length of a default lock it does not tell.
func (b *Bucket) Probe(ctx context.Context) (storage.Facts, error) {
	facts, err := b.probe(ctx)
	if err != nil {
		return storage.Facts{}, b.fail(ctx, "probe", "", err)
	}
	return facts, nil
}

func (b *Bucket) probe(ctx context.Context) (storage.Facts, error) {
	facts := storage.Facts{Free: -1, Notes: map[string]string{"endpoint": b.host()}}
	props, err := b.container.GetProperties(ctx, nil)
	switch {
	case err == nil:
		facts.Time = value(props.Date)
		facts.Lockable = value(props.IsImmutableStorageWithVersioningEnabled)
		facts.Versioned = facts.Lockable // needs it ("Version-level WORM policies")
		note(facts.Notes, "immutability_policy", props.HasImmutabilityPolicy)
		note(facts.Notes, "legal_hold", props.HasLegalHold)
		if scope := value(props.DefaultEncryptionScope); scope != "" {
			facts.Notes["encryption_scope"] = scope
		}
	case !errors.Is(translate(ctx, "probe", err), storage.ErrPermission):
		return facts, err
	}
	one := int32(1)
	page, err := b.container.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
		Prefix: some(b.prefix), MaxResults: &one, Include: container.ListBlobsInclude{Versions: true},
	}).NextPage(ctx)
	if err != nil {
		return facts, err
	}
	if facts.Time.IsZero() {
		facts.Time = value(page.Date)
	}
	for _, item := range page.Segment.BlobItems {
		facts.Versioned = facts.Versioned || value(item.VersionID) != ""
	}
	// Without an error only: many credentials may not ask.
	if account, err := b.container.GetAccountInfo(ctx, nil); err == nil {
		if value(account.IsHierarchicalNamespaceEnabled) {
			return facts, errHierarchical()
		}
		if sku := value(account.SKUName); sku != "" {
			facts.Notes["redundancy"] = string(sku)
		}
	}
	return facts, nil
}

func note(notes map[string]string, name string, is *bool) {
	if value(is) {
		notes[name] = "yes"
	}
}

// host is the service's address, without the query that holds a SAS token.
func (b *Bucket) host() string {
	address, _, _ := strings.Cut(b.container.URL(), "?")
	return strings.TrimSuffix(address, "/")
}
