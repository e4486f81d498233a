package config

import (
	"fmt"
	"strings"
)

// OptionsTable is the table of all settings but those of a repository, in
// Markdown, as it stands in docs/configuration.md.
func OptionsTable() string {
	var b strings.Builder
	b.WriteString("| Key | Environment | Flag | Default | What it does |\n|---|---|---|---|---|\n")
	for _, o := range Options() {
		if o.Schemes != nil {
			continue
		}
		key := "`" + o.Key + "`"
		if o.EnvOnly {
			key += " (not in the file)"
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s Allowed: %s. |\n",
			key, o.Env, flagCell(o), fallbackCell(o), cell(o.Help), cell(o.Allowed))
	}
	return b.String()
}

// RepositoryTable is the table of the settings that hold for every repository
// or, in an item of repositories, for one.
func RepositoryTable() string {
	var b strings.Builder
	b.WriteString("| Key | Environment | Flag | Default | For | What it does |\n|---|---|---|---|---|---|\n")
	for _, o := range Options() {
		if o.Schemes != nil {
			fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | `%s` | %s Allowed: %s. |\n",
				o.Key, o.Env, flagCell(o), fallbackCell(o), strings.Join(o.Schemes, "`, `"), cell(o.Help), cell(o.Allowed))
		}
	}
	return b.String()
}

// ItemTable is the table of the keys that only an item of repositories has.
func ItemTable() string {
	var b strings.Builder
	b.WriteString("| Key | Default | What it does |\n|---|---|---|\n")
	for _, o := range itemTable() {
		if o.Schemes == nil {
			fmt.Fprintf(&b, "| `%s` | %s | %s Allowed: %s. |\n", o.Key, fallbackCell(o.Option), cell(o.Help), cell(o.Allowed))
		}
	}
	return b.String()
}

func flagCell(o Option) string {
	if o.Flag == "" {
		return "none"
	}
	return "`--" + o.Flag + " " + o.Type + "`"
}

func fallbackCell(o Option) string {
	if o.Default == "" {
		return "none"
	}
	return cell(o.Default)
}

// WALGTable is the table of the variables of WAL-G that are understood, in
// Markdown, as it stands in docs/configuration.md.
func WALGTable() string {
	var b strings.Builder
	b.WriteString("| WAL-G | Allowed | Becomes | As |\n|---|---|---|---|\n")
	for _, a := range aliases() {
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", a.env, cell(a.form), a.key, cell(a.becomes))
	}
	return b.String()
}

// cell escapes what would end a cell of a Markdown table.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// HelpText describes all settings for a terminal, in lines of at most 80
// columns where words allow it.
func HelpText() string {
	var b strings.Builder
	b.WriteString("Settings come from a YAML file (--config, " + EnvConfig + ", else\n" + DefaultFile +
		"), the environment and flags; the later wins.\n")
	for _, o := range Options() {
		b.WriteString("\n" + o.Key + "  " + o.Env)
		if o.Flag != "" {
			b.WriteString("  --" + o.Flag + " " + o.Type)
		}
		b.WriteByte('\n')
		indented(&b, o.Help)
		indented(&b, "Allowed: "+o.Allowed+".")
		if o.Default != "" {
			indented(&b, "Default: "+o.Default+".")
		}
		if len(o.Aliases) > 0 {
			indented(&b, "WAL-G: "+strings.Join(o.Aliases, ", ")+".")
		}
	}
	return b.String()
}

func indented(b *strings.Builder, text string) {
	const indent, width = "    ", 80
	line := indent
	for word := range strings.FieldsSeq(text) {
		if len(line) > len(indent) && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent
		}
		if len(line) > len(indent) {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
}
