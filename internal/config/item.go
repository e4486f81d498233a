package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"agent/internal/errs"
)

// item is a repository and where it and its settings were set.
type item struct {
	Repository
	place   string            // "repositories[1]"; "" for one that is not from a list
	origin  origin            // of the item
	origins map[string]origin // by key
}

// at names a setting of the item as messages do.
func (i item) at(key string) string {
	if i.place == "" {
		return key
	}
	return i.place + "." + key
}

// label names the repository in messages, without secrets.
func (i item) label() string {
	if i.place == "" {
		return maskRepository(i.URL)
	}
	return fmt.Sprintf("%s (%s)", i.Name, maskRepository(i.URL))
}

// readList reads the value of repositories. ok is false if anything was wrong
// with it, which then is among the problems.
func (l *loader) readList(v value) (items []item, ok bool) {
	before := len(l.problems.list)
	o, _ := find(l.table, func(o option) bool { return o.Key == keyRepositories })
	reason := o.check(v)
	var list *yaml.Node
	if reason == nil {
		list, reason = listNode(v)
	}
	if reason != nil {
		l.problems.add(badValue(o, v, reason))
		return nil, false
	}
	for i, node := range list.Content {
		items = append(items, l.readItem(i, resolve(node), v.origin))
	}
	l.checkList(items, v.origin)
	return items, len(l.problems.list) == before
}

// listNode gives the sequence that a value is, or that its text describes.
func listNode(v value) (*yaml.Node, error) {
	node := v.node
	if node == nil {
		text := v.text()
		if len(text) > maxFile {
			return nil, fmt.Errorf("it has %d bytes", len(text))
		}
		root, second, err := oneDocument([]byte(text))
		if err != nil || second > 0 {
			// The cause may repeat what is in the text.
			return nil, errors.New("it is not valid YAML or JSON")
		}
		if root == nil {
			return nil, errEmpty
		}
		node = root
	}
	switch {
	case node.Kind != yaml.SequenceNode:
		return nil, errors.New("it is not a list")
	case len(node.Content) == 0:
		return nil, errEmpty
	default:
		return node, nil
	}
}

// readItem reads one mapping of a list that was set at from.
func (l *loader) readItem(index int, node *yaml.Node, from origin) item {
	r := item{
		Repository: Repository{Name: fmt.Sprintf("repo%d", index+1), Required: true},
		place:      fmt.Sprintf("%s[%d]", keyRepositories, index),
		origin:     lineOf(from, node), origins: map[string]origin{},
	}
	if node.Kind != yaml.MappingNode {
		l.problems.add(errs.New(errs.Config, "Write each repository as a mapping, such as {name: offsite, url: s3://bucket/prefix}.",
			"%s: bad value %q (%s): it is not a mapping", r.place, shorten(maskAny(nodeText(node))), r.origin))
		return r
	}
	rows := itemTable()
	lines := map[string]origin{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		l.readItemKey(&r, rows, node.Content[i], resolve(node.Content[i+1]), lines)
	}
	if _, has := lines["url"]; !has {
		l.problems.add(errs.New(errs.Config, "Say where the repository is, such as url: s3://bucket/prefix.",
			"%s is missing (%s)", r.at("url"), r.origin))
	}
	l.checkApplies(r, rows)
	return r
}

// lineOf adds the line of a node, if the list is from a file.
func lineOf(from origin, node *yaml.Node) origin {
	if from.kind == fromFile {
		from.line = node.Line
	}
	return from
}

// readItemKey reads one key of an item.
func (l *loader) readItemKey(r *item, rows []repositoryOption, key, node *yaml.Node, lines map[string]origin) {
	from := lineOf(r.origin, key)
	i := slices.IndexFunc(rows, func(o repositoryOption) bool { return key.Kind == yaml.ScalarNode && o.Key == key.Value })
	if i < 0 {
		l.problems.add(unknownInItem(*r, rows, key, node, from))
		return
	}
	row := rows[i]
	if before, twice := lines[row.Key]; twice {
		where := from.String()
		if from.kind == fromFile {
			where = fmt.Sprintf("%s, and line %d before", from, before.line)
		}
		l.problems.add(errs.New(errs.Config, "Keep one of the two.", "%s is set twice (%s)", r.at(row.Key), where))
		return
	}
	lines[row.Key] = from
	o := row.in(r.place + ".")
	v, reason := nodeValue(o, node)
	v.origin = from
	if reason == nil {
		reason = o.check(v)
	}
	if reason == nil {
		reason = row.parse(&r.Repository, v, l.in.Home)
	}
	if reason != nil {
		l.problems.add(badValue(o, v, reason))
		return
	}
	r.origins[row.Key] = from
}

// unknownInItem is the error for a key that items do not have.
func unknownInItem(r item, rows []repositoryOption, key, node *yaml.Node, from origin) *errs.Error {
	options := make([]option, len(rows))
	for i, row := range rows {
		options[i] = option{Option: row.Option}
	}
	asKey := func(o option) string { return o.Key }
	name := key.Value
	if key.Kind != yaml.ScalarNode {
		name = "(not a word)"
	}
	e := unknown("key", name, nodeText(node), from, meant(options, name, asKey), names(options, asKey))
	e.What = strings.Replace(e.What, "unknown key ", "unknown key "+r.place+".", 1)
	if from.kind != fromFile {
		e.What += " (" + from.String() + ")"
	}
	return e
}

// checkList holds the items against each other.
func (l *loader) checkList(items []item, from origin) {
	seen := map[string]item{}
	for _, r := range items {
		if before, twice := seen[r.Name]; twice {
			l.problems.add(errs.New(errs.Config, "Give each repository a name of its own.",
				"%s and %s have the same name %s (%s)", before.at("name"), r.at("name"), r.Name, r.origin))
		}
		seen[r.Name] = r
	}
	if !slices.ContainsFunc(items, func(r item) bool { return r.Required }) {
		l.problems.add(errs.New(errs.Config, "Set required: true for at least one of them.",
			"no repository is required (%s): a WAL segment would be thrown away by PostgreSQL without being durable anywhere", from))
	}
}
