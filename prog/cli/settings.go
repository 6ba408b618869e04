package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"weft/prog/api"
	"weft/prog/state"
	"weft/prog/words"
)

// settingsFile is the default file of this host's settings. launch and agent read it; environment
// variables override it, and flags override both. launch saves its flags in it.
const settingsFile = "/etc/weft/weft.yaml"

// settingsMark is the first line of a file that launch made. Reset only removes a file with this
// line.
const settingsMark = "# Made by `weft launch`; `weft reset` removes this file. Without this line it stays."

// notInFile lists flags that the settings file must not have. A token is secret: its place is the state folder.
var notInFile = []string{"help", "json", "socket", "token", "wait", "settings", "found"}

// origins holds the origin of each flag's value that is not the default.
type origins map[string]string

// settings holds the entries of a settings file.
type settings struct {
	path    string
	text    []byte
	entries map[string]json.RawMessage
}

// readSettings reads a settings file. A missing file has no entries.
func readSettings(path string) (s settings, err error) {
	s.path = path
	s.text, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("settings: %w", err)
	}
	if err := yaml.UnmarshalStrict(s.text, &s.entries); err != nil {
		return s, words.Misused(unreadable(path, s.text, err))
	}
	return s, nil
}

// unreadable describes in one line why a text is no valid settings file. The YAML package's errors
// contain Go types, and only some errors name a line.
func unreadable(path string, text []byte, err error) error {
	why := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok { // the file holds a text, a number or a list instead of keys
		start := firstEntry.FindIndex(text)
		why = fmt.Sprintf("line %d: there is no key with a value", 1+bytes.Count(text[:start[0]], []byte("\n")))
	} else if twice := keyTwice.FindStringSubmatch(why); twice != nil {
		why = twice[1] + twice[2] + " is set twice"
	} else if strings.Contains(why, "invalid map key") {
		why = "a key is no text"
	}
	why = strings.TrimPrefix(strings.TrimPrefix(why, "yaml: "), "json: ")
	if line, rest, ok := strings.Cut(why, ": "); ok && strings.HasPrefix(line, "line ") {
		path, why = path+", "+line, rest
	}
	return fmt.Errorf("settings file %s: %s: want lines such as `mtu: 1300`, each key once", path, strings.Join(strings.Fields(why), " "))
}

var (
	firstEntry = regexp.MustCompile(`(?m)^[ \t]*[^#\s]|\z`)                             // matches the first line that is neither empty nor a comment
	keyTwice   = regexp.MustCompile(`(line \d+: )key "?([^"\n]+)"? already set in map`) // matches an error text of the YAML package
)

// keyAt matches the beginning of a key's entry.
func keyAt(key string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^["']?` + regexp.QuoteMeta(key) + `["']?[ \t]*:`)
}

// at returns the file, line and name of a key, for errors.
func (s settings) at(key string) string {
	where := s.path
	if found := keyAt(key).FindIndex(s.text); found != nil {
		where = fmt.Sprintf("%s, line %d", s.path, 1+bytes.Count(s.text[:found[0]], []byte("\n")))
	}
	return where + ": " + key
}

// apply sets the flags that were given neither as flags nor in the environment.
func (s settings) apply(flags *pflag.FlagSet, from origins) error {
	keys := make([]string, 0, len(s.entries))
	for key := range s.entries {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		f := flags.Lookup(key)
		switch {
		case key == "token":
			return words.Misused(fmt.Errorf("%s: a token does not belong into this file, since other users can read it: give it once with `weft launch --token -`, or put the network's secret into /var/lib/weft/secret (mode 0600)", s.at(key)))
		case f == nil || slices.Contains(notInFile, key):
			return words.Misused(fmt.Errorf("%s: there is no such setting%s: `weft config view` lists all", s.at(key), didYouMean(key, flags)))
		}
		values, err := flagValues(f, s.entries[key])
		if err != nil {
			return words.Misused(fmt.Errorf("%s: %w", s.at(key), err))
		}
		if f.Changed {
			continue
		}
		if setFlag(flags, f, values) != nil {
			return words.Misused(fmt.Errorf("%s: %w", s.at(key), badValue(f, strings.Join(values, ","))))
		}
		from[key] = api.FromFile
	}
	return nil
}

// applyDirs sets folders that were not given as flags from the settings file, since the agent uses the
// folders in that file.
func applyDirs(path string, flags *pflag.FlagSet) error {
	file, err := readSettings(path)
	if err != nil {
		return err
	}
	for key := range file.entries {
		if f := flags.Lookup(key); f == nil || !strings.HasSuffix(key, "-dir") {
			delete(file.entries, key)
		}
	}
	return file.apply(flags, origins{})
}

// didYouMean suggests a setting whose name only differs in case, dashes or underscores.
func didYouMean(key string, flags *pflag.FlagSet) (hint string) {
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s)) }
	flags.VisitAll(func(f *pflag.Flag) {
		if plain(f.Name) == plain(key) && !slices.Contains(notInFile, f.Name) {
			hint = fmt.Sprintf(" (did you mean %s?)", f.Name)
		}
	})
	return hint
}

// flagValues converts an entry to values of a flag, and checks its type.
func flagValues(f *pflag.Flag, raw json.RawMessage) ([]string, error) {
	_, list := f.Value.(pflag.SliceValue)
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	one := func(v any) (string, error) {
		switch v := v.(type) {
		case string:
			if f.Value.Type() != "int" && f.Value.Type() != "bool" {
				return v, nil
			}
		case float64:
			if f.Value.Type() == "int" && v == float64(int64(v)) {
				return fmt.Sprint(int64(v)), nil
			}
		case bool:
			if f.Value.Type() == "bool" {
				return fmt.Sprint(v), nil
			}
		}
		return "", fmt.Errorf("want %s, not %s", kindOf(f), raw)
	}
	items, ok := v.([]any)
	if !ok {
		text, err := one(v)
		return []string{text}, err
	}
	if !list {
		return nil, fmt.Errorf("want %s, not a list", kindOf(f))
	}
	values := []string{}
	for _, item := range items {
		text, err := one(item)
		if err != nil {
			return nil, err
		}
		values = append(values, text)
	}
	return values, nil
}

func kindOf(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int":
		return "a whole number"
	case "bool":
		return "true or false"
	case "duration":
		return "a duration in quotes, such as \"90s\""
	case "stringSlice":
		return "a text in quotes, or a list of them"
	}
	return "a text in quotes"
}

func setFlag(flags *pflag.FlagSet, f *pflag.Flag, values []string) error {
	if slice, ok := f.Value.(pflag.SliceValue); ok {
		if len(values) != 1 { // Set would split a single text at its commas
			f.Changed = true
			return slice.Replace(values)
		}
	}
	return flags.Set(f.Name, values[0])
}

// with returns the file's text with some keys changed, and all other lines kept.
func (s settings) with(given map[string]string) []byte {
	text := s.text
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte(settingsMark + "\n")
	}
	keys := make([]string, 0, len(given))
	for key := range given {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		line := []byte(key + ": " + given[key] + "\n")
		found := keyAt(key).FindIndex(text)
		if found == nil {
			if !bytes.HasSuffix(text, []byte("\n")) {
				text = append(text, '\n')
			}
			text = append(text, line...)
			continue
		}
		end := found[1] + entryEnd(text[found[1]:])
		text = slices.Concat(text[:found[0]], line, text[end:])
	}
	return text
}

// entryEnd returns the length of an entry. It ends at the next line that is neither indented nor a
// list item.
func entryEnd(text []byte) int {
	end := 0
	for {
		next := bytes.IndexByte(text[end:], '\n')
		if next < 0 {
			return len(text)
		}
		end += next + 1
		if end == len(text) || !bytes.ContainsAny(text[end:end+1], " \t-") {
			return end
		}
	}
}

// givenSettings returns the given flags that the settings file can hold, as YAML.
func givenSettings(flags *pflag.FlagSet, from origins) map[string]string {
	given := map[string]string{}
	flags.Visit(func(f *pflag.Flag) {
		if from[f.Name] != api.FromFlag || slices.Contains(notInFile, f.Name) {
			return
		}
		var v any = f.Value.String()
		if slice, ok := f.Value.(pflag.SliceValue); ok {
			v = append([]string{}, slice.GetSlice()...)
		}
		data, _ := json.Marshal(v) // strings and lists of strings can always be marshalled
		if t := f.Value.Type(); t == "int" || t == "bool" {
			data = []byte(f.Value.String())
		}
		given[f.Name] = string(data)
	})
	return given
}

// saveSettings writes the flags of launch into the settings file, so that later launches and units
// use them.
func saveSettings(path string, given map[string]string) error {
	if len(given) == 0 {
		return nil
	}
	s, err := readSettings(path)
	if err != nil {
		return err
	}
	text := s.with(given)
	if bytes.Equal(text, s.text) {
		return nil
	}
	if err := yaml.UnmarshalStrict(text, &map[string]json.RawMessage{}); err != nil {
		return fmt.Errorf("settings file %s: `weft launch` cannot edit this form of YAML: write one key per line, such as `mtu: 1300`", path)
	}
	return replaceFile(path, text)
}

// restore writes back the file as it was read.
func (s settings) restore() error {
	if s.text == nil {
		return removeSettings(s.path)
	}
	return replaceFile(s.path, s.text)
}

// replaceFile replaces a settings file, or the file that a symbolic link there names.
func replaceFile(path string, text []byte) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	if err := state.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// removeSettings removes a settings file that launch made.
func removeSettings(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.HasPrefix(text, []byte(settingsMark)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	_ = os.Remove(filepath.Dir(path)) // the removal fails if the folder holds other files, as intended
	return nil
}

// listSettings returns all settings with their values and origins.
func listSettings(flags *pflag.FlagSet, from origins) (list []api.Setting) {
	flags.VisitAll(func(f *pflag.Flag) {
		if slices.Contains(notInFile, f.Name) {
			return
		}
		origin := api.FromDefault
		if o, ok := from[f.Name]; ok {
			origin = o
		}
		value := f.Value.String()
		if slice, ok := f.Value.(pflag.SliceValue); ok {
			value = strings.Join(slice.GetSlice(), ",")
		}
		list = append(list, api.Setting{Name: f.Name, Value: value, Origin: origin})
	})
	return list
}
