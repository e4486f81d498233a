package config

import (
	"maps"
	"slices"
	"strings"

	"agent/internal/errs"
	"agent/internal/storage"
)

// choose finds the repositories of this run in the layers, the lowest first. A
// list is replaced by what a higher layer says, which may be one item of it.
func (l *loader) choose(layers ...layer) []item {
	var chosen, list []item
	whole := true
	for _, from := range layers {
		one, hasOne := from[keyRepository]
		several, hasSeveral := from[keyRepositories]
		if hasOne && hasSeveral {
			l.problems.add(errs.New(errs.Config, "Keep one of them; repositories may have one item.",
				"%s (%s) and %s (%s) are both set", keyRepository, one.origin, keyRepositories, several.origin))
		}
		if hasSeveral {
			list, whole = l.readList(several)
			chosen = list
		}
		if hasOne {
			chosen = l.readOne(one, list, whole)
		}
	}
	return chosen
}

// readOne reads the value of repository: an item of the list by name or URL,
// or a repository of its own. A list that is not whole may lack what is named.
func (l *loader) readOne(v value, list []item, whole bool) []item {
	o, _ := find(l.table, func(o option) bool { return o.Key == keyRepository })
	reason := o.check(v)
	if reason == nil {
		named := slices.IndexFunc(list, func(r item) bool { return r.Name == v.text() })
		if named >= 0 {
			return []item{alone(list[named], v.origin)}
		}
		var url string
		url, reason = repositoryURL(v.text(), l.in.Home)
		if reason == nil {
			return l.byURL(url, v.origin, list)
		}
		if !strings.Contains(v.text(), ":") && !strings.Contains(v.text(), "/") {
			if !whole {
				return nil // the problem is in the list
			}
			if len(list) > 0 {
				reason = errs.New(errs.Config, "Give a name of the list, an absolute path, or a URL such as s3://bucket/prefix.",
					"it is neither a URL nor an absolute path, nor the name of a repository (%s)", strings.Join(itemNames(list), ", "))
			}
		}
	}
	l.problems.add(badValue(o, v, reason))
	return nil
}

// byURL takes the item at a URL, if the list has one, with its settings.
func (l *loader) byURL(url string, from origin, list []item) []item {
	same := slices.DeleteFunc(slices.Clone(list), func(r item) bool { return spot(r.URL) != spot(url) })
	switch len(same) {
	case 0:
		return []item{{
			Repository: Repository{Name: "main", URL: url, Required: true},
			origin:     from, origins: map[string]origin{},
		}}
	case 1:
		return []item{alone(same[0], from)}
	default:
		l.problems.add(errs.New(errs.Config, "Give the name of the one that is meant.",
			"%s (%s): the repositories %s have this URL", keyRepository, from, strings.Join(itemNames(same), ", ")))
		return nil
	}
}

// alone is an item that was picked, so that the others do not count: it is
// required.
func alone(r item, from origin) item {
	r.Required, r.origin = true, from
	return r
}

func itemNames(list []item) []string {
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = r.Name
	}
	return names
}

// place is a URL taken apart, so that spellings of the same are equal.
type place struct{ scheme, host, path string }

// spot takes apart a URL that was checked; one that was not is no place.
func spot(url string) place {
	scheme, host, path, err := storage.ParseURL(url)
	if err != nil {
		return place{}
	}
	return place{scheme, host, path}
}

// checkApplies refuses what has no meaning for the kind of repository that an
// item is: it was written for this one, so its writer expects an effect.
func (l *loader) checkApplies(r item, rows []repositoryOption) {
	scheme := spot(r.URL).scheme
	if scheme == "" {
		return
	}
	for _, row := range rows {
		from, set := r.origins[row.Key]
		if !set || row.Schemes == nil || slices.Contains(row.Schemes, scheme) || row.Key == "immutable" && r.Immutable == nil {
			continue
		}
		hint := "Take it out of this item."
		if row.Key == "immutable" {
			hint = "Take it out of this item, or set it to none: this kind of store cannot lock objects."
		}
		l.problems.add(errs.New(errs.Config, hint, "%s (%s) has no meaning for a repository with the scheme %s, only for: %s",
			r.at(row.Key), from, scheme, strings.Join(row.Schemes, ", ")))
	}
}

// takeRepositories gives each chosen repository what is set for all, and
// stores them in c.
func (l *loader) takeRepositories(c *Config, chosen []item) {
	for i := range chosen {
		r := &chosen[i]
		r.origins = maps.Clone(r.origins)
		l.inherit(r)
		l.checkRepository(r)
		c.Repositories = append(c.Repositories, r.Repository)
	}
	if len(chosen) == 0 {
		return
	}
	l.checkPlaces(chosen)
	l.warnUnused(chosen)
	c.Repository = chosen[0].URL
	c.origins[keyRepository] = chosen[0].origin
	if chosen[0].place != "" {
		c.items = chosen
	}
}

// inherit sets what the item does not say itself and a setting for all does.
func (l *loader) inherit(r *item) {
	scheme := spot(r.URL).scheme
	for _, row := range repositoryTable() {
		v, set := l.won[row.Key]
		if _, own := r.origins[row.Key]; own || !set || v.only != "" && v.only != scheme {
			continue
		}
		// A promised lock is not dropped where it cannot be kept: the store
		// refuses to write without it.
		if !slices.Contains(row.Schemes, scheme) && row.Key != "immutable" {
			continue
		}
		if err := row.parse(&r.Repository, v, l.in.Home); err != nil {
			l.problems.add(badValue(row.in(""), v, err))
			continue
		}
		r.origins[row.Key] = v.origin
	}
}

// coldClasses are storage classes from which nothing can be read before it is
// brought back, which takes hours (S3 user guide, "Understanding S3 Glacier
// storage classes"; Azure Blob Storage, "Access tiers for blob data").
func coldClasses(scheme string) []string {
	switch scheme {
	case storage.SchemeS3:
		return []string{"GLACIER", "DEEP_ARCHIVE"}
	case storage.SchemeAzure:
		return []string{"ARCHIVE"}
	default:
		return nil
	}
}

// checkRepository holds the settings of one repository against each other.
func (l *loader) checkRepository(r *item) {
	scheme := spot(r.URL).scheme
	if slices.Contains(coldClasses(scheme), strings.ToUpper(r.StorageClass)) {
		l.problems.add(errs.New(errs.Config, "Use a class with instant access, such as GLACIER_IR or STANDARD_IA on S3, or Cold on Azure.",
			"%s: bad value %q (%s): objects of this class cannot be read for hours, so that neither WAL nor backups could be restored from %s",
			r.at("storage_class"), r.StorageClass, r.origins["storage_class"], r.label()))
	}
	if scheme == storage.SchemeS3 && r.KMSKey != "" {
		_, said := r.origins["sse"]
		if said && r.SSE != SSEKMS {
			l.problems.add(errs.New(errs.Config, "Set sse to aws:kms, or take kms_key out.",
				"%s (%s) needs sse aws:kms, but it is %s (%s)", r.at("kms_key"), r.origins["kms_key"], orNone(r.SSE), r.origins["sse"]))
		}
		r.SSE = SSEKMS
	}
	if r.Insecure {
		l.warn("insecure is set (%s): certificates of the repository %s are not checked, so that anybody between here and there can read and change what is sent",
			r.origins["insecure"], r.label())
	}
	if r.Immutable != nil && (scheme == storage.SchemeFile || scheme == storage.SchemeSFTP) {
		l.warn("immutable is set for all repositories (%s), but %s cannot lock objects and will refuse to store any: set immutable to none for this one",
			r.origins["immutable"], r.label())
	}
}

// checkPlaces refuses a copy that is beside itself.
func (l *loader) checkPlaces(chosen []item) {
	type whole struct {
		place
		endpoint string
	}
	seen := map[whole]item{}
	for _, r := range chosen {
		at := whole{spot(r.URL), r.S3Endpoint + r.GCSEndpoint + r.AzureEndpoint + "/" + r.AzureAccount}
		if before, twice := seen[at]; twice {
			l.problems.add(errs.New(errs.Config, "Give each repository a bucket, prefix or folder of its own.",
				"%s and %s (%s) are the same place", before.at("url"), r.at("url"), r.origin))
		}
		seen[at] = r
	}
}

// warnUnused names settings for all repositories that none of the chosen ones
// can use, unless these were chosen in a higher layer, since the settings may
// then belong to others.
func (l *loader) warnUnused(chosen []item) {
	for _, row := range repositoryTable() {
		v, set := l.won[row.Key]
		if !set || v.origin.kind < chosen[0].origin.kind || v.only != "" || v.text() == "false" || v.text() == none || row.Key == "immutable" {
			continue
		}
		if !slices.ContainsFunc(chosen, func(r item) bool { return slices.Contains(row.Schemes, spot(r.URL).scheme) }) {
			l.warn("%s is set (%s), but has a meaning only for repositories with the scheme %s", row.Key, v.origin, strings.Join(row.Schemes, ", "))
		}
	}
}
