// Package browser tests the page of weft ui in a real Chromium: every view with made-up networks of 3 and of 500
// hosts, and a real lab whose link is cut. It also makes the screenshots of the documentation. It only has tests.
package browser
