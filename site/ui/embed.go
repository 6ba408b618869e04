// Package ui holds the files of the page that weft ui serves. It only embeds them: prog/ui serves them, and
// prog/lab/browser tests them. The page loads no file from elsewhere, and there is no build step.
package ui

import "embed"

// Files are the page: index.html, its style sheets and its ES modules.
//
//go:embed index.html *.css *.js *.svg
var Files embed.FS
