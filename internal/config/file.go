package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"go.yaml.in/yaml/v3"

	"agent/internal/errs"
)

// maxFile bounds what is parsed, in bytes: a file that is bigger is not a
// configuration, and YAML needs many times its size in memory.
const maxFile = 1 << 20

// readFile finds and reads the configuration file. Only the default one may
// be missing.
func (l *loader) readFile() (string, layer) {
	path, from, optional := l.in.Config, "--config", false
	if path == "" {
		named, set := l.variable(EnvConfig)
		if set {
			path, from = named, EnvConfig
		} else {
			path, from, optional = DefaultFile, "the default", true
		}
	}
	full, err := expandHome(path, l.in.Home)
	var data []byte
	if err == nil {
		path = full
		data, err = l.in.ReadFile(path)
	}
	switch {
	case optional && errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		var pathError *fs.PathError
		if errors.As(err, &pathError) {
			err = pathError.Err // the path is in the text already
		}
		l.problems.add(&errs.Error{
			Kind: errs.Config, Err: err,
			What: fmt.Sprintf("read configuration file %s (from %s)", path, from),
			Hint: "Make the file readable for the user that runs the agent, or name another one with --config or " + EnvConfig + ".",
		})
		return path, nil
	case len(data) > maxFile:
		l.problems.add(errs.New(errs.Config, "Check that this is the right file.",
			"configuration file %s has %d bytes, more than %d", path, len(data), maxFile))
		return path, nil
	}
	return path, l.parseFile(path, data)
}

// parseFile reads one YAML mapping of keys to scalars or lists of scalars.
// Nodes are used rather than a struct, for the line numbers and to see
// duplicates, and so that values stay as they were written.
func (l *loader) parseFile(path string, data []byte) layer {
	root, second, err := oneDocument(data)
	switch {
	case err != nil:
		l.problems.add(errs.New(errs.Config, "Write one \"key: value\" per line, without tabs at its beginning.",
			"file %s is not valid YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: ")))
		return nil
	case second > 0:
		l.problems.add(errs.New(errs.Config, "Keep one document; remove the line \"---\" between them.",
			"file %s line %d: a second YAML document begins", path, second))
		return nil
	case root == nil:
		return nil
	case root.Kind != yaml.MappingNode:
		l.problems.add(errs.New(errs.Config, "Write one \"key: value\" per line.",
			"file %s line %d: the file is not a list of keys and values", path, root.Line))
		return nil
	}
	settings, lines := layer{}, map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		l.fileSetting(path, root.Content[i], root.Content[i+1], settings, lines)
	}
	return settings
}

// oneDocument parses YAML. root is nil if there is nothing in it, or null;
// second is the line at which another document begins, or 0.
func oneDocument(data []byte) (root *yaml.Node, second int, err error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, more yaml.Node
	err = decoder.Decode(&document)
	if errors.Is(err, io.EOF) {
		return nil, 0, nil // empty, or comments alone
	}
	if err != nil {
		return nil, 0, err
	}
	err = decoder.Decode(&more)
	if err == nil {
		return nil, max(1, more.Line), nil
	}
	if !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	root = resolve(document.Content[0])
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, 0, nil
	}
	return root, 0, nil
}

// resolve follows an alias to what it stands for.
func resolve(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func (l *loader) fileSetting(path string, key, node *yaml.Node, settings layer, lines map[string]int) {
	from := origin{kind: fromFile, name: path, line: key.Line}
	node = resolve(node)
	o, known := find(l.table, func(o option) bool { return o.Key == key.Value })
	if !known || key.Kind != yaml.ScalarNode {
		asKey := func(o option) string {
			if o.EnvOnly {
				return ""
			}
			return o.Key
		}
		name := key.Value
		if key.Kind != yaml.ScalarNode {
			name = "(not a word)"
		}
		l.problems.add(unknown("key", name, nodeText(node), from, meant(l.table, name, asKey), names(l.table, asKey)))
		return
	}
	if before, twice := lines[o.Key]; twice {
		l.problems.add(errs.New(errs.Config, "Keep one of the two lines.",
			"%s is set twice (%s, and line %d before)", o.Key, from, before))
		return
	}
	lines[o.Key] = key.Line
	if o.EnvOnly {
		l.problems.add(errs.New(errs.Config,
			secretHint(o),
			"%s may not be in a file (%s)", o.Key, from))
		return
	}
	v, err := nodeValue(o, node)
	v.origin = from
	if err != nil {
		l.problems.add(badValue(o, v, err))
		return
	}
	settings[o.Key] = v
}

// nodeValue takes the text of a scalar, of the items of a list, or of a mapping
// that can be written as a text. The list of repositories stays a node.
func nodeValue(o option, node *yaml.Node) (value, error) {
	switch {
	case o.Key == keyRepositories && node.Kind != yaml.ScalarNode:
		return value{items: []string{nodeText(node)}, node: node}, nil
	case node.Kind == yaml.MappingNode && o.mapping != nil:
		text, err := o.mapping(node)
		if err != nil {
			text = nodeText(node)
		}
		return value{items: []string{text}}, err
	case node.Kind == yaml.ScalarNode:
		text, err := scalar(node)
		return value{items: []string{text}, node: node}, err
	case node.Kind == yaml.SequenceNode && o.list:
		v := value{list: true, items: []string{}}
		for _, item := range node.Content {
			item = resolve(item)
			if item.Kind != yaml.ScalarNode {
				return value{items: []string{nodeText(node)}}, errors.New("its items are not all plain values")
			}
			text, err := scalar(item)
			if err != nil {
				return value{items: []string{nodeText(node)}}, err
			}
			v.items = append(v.items, text)
		}
		return v, nil
	default:
		return value{items: []string{nodeText(node)}}, errors.New("it is not a plain value")
	}
}

// scalar returns the text of a scalar as it was written, so that 010 or yes
// mean what they say. The tags are those of YAML's core schema; null, which
// is what an empty value is, and foreign tags are refused.
func scalar(node *yaml.Node) (string, error) {
	switch node.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
		return strings.TrimSpace(node.Value), nil
	case "!!null":
		return "", errEmpty
	default:
		return "", errors.New("it has a YAML tag")
	}
}

// nodeText describes a node for an error.
func nodeText(node *yaml.Node) string {
	switch node.Kind {
	case yaml.ScalarNode:
		return node.Value
	case yaml.SequenceNode:
		return "(a list)"
	default:
		return "(a mapping)"
	}
}
